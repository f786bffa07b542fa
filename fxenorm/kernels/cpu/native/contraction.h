// Max-balanced potentials by contraction of bottleneck cycles: the steps of solve/max_balance/contraction.py, in the same order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "layout.h"

#if defined(__GNUC__) && !defined(__clang__)
#define FXENORM_EACH_ROUNDED __attribute__((optimize("fp-contract=off")))
#else
#define FXENORM_EACH_ROUNDED
#endif

// Arcs in a heap, each once: that of the largest key is the first, of equal ones that of the lowest number.
class ArcHeap {
    struct Entry {
        double key;
        std::int32_t arc;
        bool before(const Entry &other) const { return key > other.key || (key == other.key && arc < other.arc); }
    };
    std::vector<Entry> entries;
    std::vector<std::int32_t> places;  // -1: not in the heap

    void put(size_t place, const Entry &entry) {
        entries[place] = entry;
        places[entry.arc] = static_cast<std::int32_t>(place);
    }

    void rise(size_t place, const Entry &entry) {
        while (place > 0) {
            const size_t above = (place - 1) / 4;
            if (!entry.before(entries[above])) break;
            put(place, entries[above]);
            place = above;
        }
        put(place, entry);
    }

    void sink(size_t place, const Entry &entry) {
        const size_t size = entries.size();
        for (;;) {
            size_t below = 4 * place + 1;
            if (below >= size) break;
            const size_t end = std::min(below + 4, size);
            for (size_t other = below + 1; other < end; ++other)
                if (entries[other].before(entries[below])) below = other;
            if (!entries[below].before(entry)) break;
            put(place, entries[below]);
            place = below;
        }
        put(place, entry);
    }

  public:
    explicit ArcHeap(i64 arcs) : places(arcs, -1) { entries.reserve(arcs); }
    bool empty() const { return entries.empty(); }
    double largest() const { return entries.front().key; }
    std::int32_t first() const { return entries.front().arc; }

    // Enters an arc, or raises its key.
    void raise(std::int32_t arc, double key) {
        if (places[arc] < 0) {
            entries.emplace_back();
            rise(entries.size() - 1, {key, arc});
        } else {
            rise(places[arc], {key, arc});
        }
    }

    // Gives the first arc a key that is lower than its own.
    void lower_first(double key) { sink(0, {key, entries.front().arc}); }

    void drop_first() {
        places[entries.front().arc] = -1;
        const Entry last = entries.back();
        entries.pop_back();
        if (!entries.empty()) sink(0, last);
    }
};

// Of node v, the tree path has paths[v].sum as its length and paths[v].hops arcs; the number by which arcs are shortened is `rate`.
// Arcs are put in the order of their tails, so that those out of a node lie side by side; a merged node has those of all its members.
struct Contraction {
    using Id = std::int32_t;
    struct Arc {
        Id tail, head;
        double length, key;
    };
    struct Path {
        double sum;
        Id hops, parent;
    };

    i64 count, root = 0, left;
    double rate = std::numeric_limits<double>::infinity();
    std::vector<Arc> arcs;
    std::vector<Path> paths;
    std::vector<Id> out_start, in_start, inward, first_child, next_child, previous_child;
    std::vector<i64> sizes;  // how many arcs and children a node has
    ArcHeap heap;
    std::vector<Id> merged, merged_into, first, last, following, stack, moved, path, risen;
    std::vector<double> merged_offset, gaps, offsets;  // gaps: of each node, the level between it and its follower

    Contraction(i64 nodes, i64 arc_count, const i64 *tails, const i64 *heads, const double *lengths)
        : count(nodes), left(nodes), arcs(arc_count), paths(nodes, {0.0, -1, -1}), out_start(nodes + 1, 0), in_start(nodes + 1, 0),
          inward(arc_count), first_child(nodes, -1), next_child(nodes, -1), previous_child(nodes, -1), sizes(nodes, 0),
          heap(arc_count), first(nodes), last(nodes), following(nodes, -1), gaps(nodes, 0.0) {
        for (i64 arc = 0; arc < arc_count; ++arc) {
            ++out_start[tails[arc] + 1];
            ++in_start[heads[arc] + 1];
        }
        for (i64 node = 0; node < nodes; ++node) {
            first[node] = last[node] = (Id)node;
            sizes[node] = out_start[node + 1] + in_start[node + 1];
            out_start[node + 1] += out_start[node];
            in_start[node + 1] += in_start[node];
        }
        std::vector<Id> next(out_start.begin(), out_start.end() - 1);
        for (i64 arc = 0; arc < arc_count; ++arc)
            arcs[next[tails[arc]]++] = {(Id)tails[arc], (Id)heads[arc], lengths[arc], -std::numeric_limits<double>::infinity()};
        next.assign(in_start.begin(), in_start.end() - 1);
        for (i64 arc = 0; arc < arc_count; ++arc) inward[next[arcs[arc].head]++] = (Id)arc;
    }

    // Calls a function with each arc out of, or into, a node.
    template <class F> void for_outward(Id node, F &&call) {
        for (Id member = first[node];; member = following[member]) {
            for (Id arc = out_start[member]; arc < out_start[member + 1]; ++arc) call(arc);
            if (member == last[node]) return;
        }
    }
    template <class F> void for_inward(Id node, F &&call) {
        for (Id member = first[node];; member = following[member]) {
            for (Id at = in_start[member]; at < in_start[member + 1]; ++at) call(inward[at]);
            if (member == last[node]) return;
        }
    }

    void add_child(Id parent, Id child) {
        next_child[child] = first_child[parent];
        previous_child[child] = -1;
        if (first_child[parent] >= 0) previous_child[first_child[parent]] = child;
        first_child[parent] = child;
        ++sizes[parent];
    }

    void drop_child(Id parent, Id child) {
        const Id before = previous_child[child], after = next_child[child];
        if (before >= 0) next_child[before] = after;
        else first_child[parent] = after;
        if (after >= 0) previous_child[after] = before;
        --sizes[parent];
    }

    FXENORM_EACH_ROUNDED void raise_key(Id number) {
        Arc &arc = arcs[number];
        const Path &tail = paths[arc.tail], &head = paths[arc.head];
        const Id more = tail.hops + 1 - head.hops;
        if (more <= 0 || arc.tail == arc.head) return;
        const double gain = tail.sum + arc.length - head.sum, known = arc.key * (double)more;
        if (gain < known - 1e-15 * std::fabs(known)) return;  // nearly all: no division
        double key = gain / (double)more;
        if (!(key > arc.key)) return;
        arc.key = key = std::min(key, rate);
        heap.raise(number, key);
    }

    // The tree of fewest arcs, of these the longest, and the heap of keys.
    FXENORM_EACH_ROUNDED void plant() {
        paths[root].hops = 0;
        std::vector<Id> layer(1, (Id)root), further;
        while (!layer.empty()) {
            further.clear();
            for (Id tail : layer)
                for (Id number = out_start[tail]; number < out_start[tail + 1]; ++number) {
                    Path &head = paths[arcs[number].head];
                    const double total = paths[tail].sum + arcs[number].length;
                    if (head.hops < 0) {
                        head.hops = paths[tail].hops + 1;
                        further.push_back(arcs[number].head);
                    } else if (head.hops != paths[tail].hops + 1 || total <= head.sum) {
                        continue;
                    }
                    head.sum = total;
                    head.parent = tail;
                }
            layer.swap(further);
        }
        for (i64 node = 0; node < count; ++node)
            if (paths[node].parent >= 0) add_child(paths[node].parent, (Id)node);
        for (i64 arc = 0; arc < (i64)arcs.size(); ++arc) raise_key((Id)arc);
    }

    // Makes the paths of some subtrees, those on the stack, longer; their nodes are in `moved`.
    FXENORM_EACH_ROUNDED void move(Id more, double length) {
        moved.clear();
        while (!stack.empty()) {
            const Id node = stack.back();
            stack.pop_back();
            paths[node].hops += more;
            paths[node].sum += length;
            moved.push_back(node);
            for (Id child = first_child[node]; child >= 0; child = next_child[child]) stack.push_back(child);
        }
    }

    void hang(Id node, Id below, Id more, double length) {
        drop_child(paths[node].parent, node);
        add_child(below, node);
        paths[node].parent = below;
        stack.assign(1, node);
        move(more, length);
        for (Id each : moved) for_outward(each, [this](Id arc) { raise_key(arc); });
    }

    FXENORM_EACH_ROUNDED void absorb(Id node, Id kept, double offset) {
        merged.push_back(node);
        merged_into.push_back(kept);
        merged_offset.push_back(offset);
        for_outward(node, [this, kept, offset](Id arc) {
            arcs[arc].tail = kept;
            arcs[arc].length += offset;
        });
        for_inward(node, [this, kept, offset](Id arc) {
            arcs[arc].head = kept;
            arcs[arc].length -= offset;
        });
        for (Id child = first_child[node]; child >= 0;) {
            const Id after = next_child[child];
            paths[child].parent = kept;
            add_child(kept, child);
            --sizes[node];
            child = after;
        }
        first_child[node] = -1;
        sizes[kept] += sizes[node];
        following[last[kept]] = first[node];
        gaps[last[kept]] = rate;
        last[kept] = last[node];
    }

    // Makes one node of the path, given from its lower end.
    FXENORM_EACH_ROUNDED void contract() {
        const Id top = path.back();
        for (size_t at = 0; at + 1 < path.size(); ++at) drop_child(path[at + 1], path[at]);
        const double reference = paths[top].sum - rate * (double)paths[top].hops;
        offsets.clear();
        size_t place = 0;
        for (size_t at = 0; at < path.size(); ++at) {
            offsets.push_back(paths[path[at]].sum - rate * (double)paths[path[at]].hops - reference);
            if (sizes[path[at]] > sizes[path[place]]) place = at;
        }
        const Id kept = path[place];
        risen.clear();
        const auto note = [this](Id arc) { risen.push_back(arc); };
        for (size_t at = 0; at + 1 < path.size(); ++at) {
            const Id node = path[at], fewer = paths[node].hops - paths[top].hops;
            for (Id child = first_child[node]; child >= 0; child = next_child[child]) stack.push_back(child);
            move(-fewer, -rate * (double)fewer);
            for (Id each : moved) for_inward(each, note);
            for_inward(node, note);
        }
        paths[kept].sum -= rate * (double)(paths[kept].hops - paths[top].hops);
        paths[kept].hops = paths[top].hops;
        if (kept != top) {
            const Id above = paths[top].parent;
            if (above >= 0) {
                drop_child(above, top);
                add_child(above, kept);
            } else {
                root = kept;
            }
            paths[kept].parent = above;
        }
        for (size_t at = 0; at < path.size(); ++at)
            if (path[at] != kept) absorb(path[at], kept, offsets[at] - offsets[place]);
        left -= (i64)path.size() - 1;
        for (Id arc : risen) raise_key(arc);
    }

    // Changes the tree, or contracts a cycle, where the largest key says so; false where the graph is not strongly connected.
    FXENORM_EACH_ROUNDED bool run() {
        const double never = -std::numeric_limits<double>::infinity();
        while (left > 1) {
            if (heap.empty()) return false;
            Arc &arc = arcs[heap.first()];
            const Id tail = arc.tail, head = arc.head;
            if (tail == head) {
                heap.drop_first();
                continue;
            }
            const Id more = paths[tail].hops + 1 - paths[head].hops;
            const double gain = paths[tail].sum + arc.length - paths[head].sum;
            const double known = heap.largest(), key = more > 0 ? gain / (double)more : never;
            if (key < known) {
                arc.key = key;
                if (more > 0) heap.lower_first(key);
                else heap.drop_first();
                continue;
            }
            heap.drop_first();
            rate = std::min(rate, key);
            path.assign(1, tail);
            Id node = tail;
            while (paths[node].hops > paths[head].hops) {
                node = paths[node].parent;
                path.push_back(node);
            }
            if (node == head) {
                contract();
            } else {
                arc.key = never;
                hang(head, tail, more, gain);
            }
        }
        return true;
    }
};

// Max-balanced potentials by contraction of bottleneck cycles: the steps of solve/max_balance/contraction.py, in the same order.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "layout.h"

#if defined(__GNUC__) && !defined(__clang__)
#define FXENORM_EACH_ROUNDED __attribute__((optimize("fp-contract=off")))
#else
#define FXENORM_EACH_ROUNDED
#endif

// Of node v, the tree path has sums[v] as its length and hops[v] arcs; the number by which arcs are shortened is `rate`.
struct Contraction {
    i64 count, root = 0, left;
    i64 *tails, *heads;
    double *lengths;
    double rate = std::numeric_limits<double>::infinity();
    std::vector<std::vector<i64>> outward, inward;
    std::vector<i64> hops, parents, first_child, next_child, previous_child, children;
    std::vector<double> sums, keys;
    std::vector<std::pair<double, i64>> heap;  // the least is -key of the largest key
    std::vector<i64> merged, merged_into, first, last, following, stack, moved, path, risen;
    std::vector<double> merged_offset, gaps;  // of each node, the level between it and its follower

    Contraction(i64 nodes, i64 arcs, i64 *tail_of, i64 *head_of, double *length_of)
        : count(nodes), left(nodes), tails(tail_of), heads(head_of), lengths(length_of), outward(nodes), inward(nodes),
          hops(nodes, -1), parents(nodes, -1), first_child(nodes, -1), next_child(nodes, -1), previous_child(nodes, -1),
          children(nodes, 0), sums(nodes, 0.0), keys(arcs, -std::numeric_limits<double>::infinity()), first(nodes), last(nodes),
          following(nodes, -1), gaps(nodes, 0.0) {
        for (i64 arc = 0; arc < arcs; ++arc) {
            outward[tails[arc]].push_back(arc);
            inward[heads[arc]].push_back(arc);
        }
        for (i64 node = 0; node < nodes; ++node) first[node] = last[node] = node;
    }

    void add_child(i64 parent, i64 child) {
        next_child[child] = first_child[parent];
        previous_child[child] = -1;
        if (first_child[parent] >= 0) previous_child[first_child[parent]] = child;
        first_child[parent] = child;
        ++children[parent];
    }

    void drop_child(i64 parent, i64 child) {
        const i64 before = previous_child[child], after = next_child[child];
        if (before >= 0) next_child[before] = after;
        else first_child[parent] = after;
        if (after >= 0) previous_child[after] = before;
        --children[parent];
    }

    FXENORM_EACH_ROUNDED void raise_key(i64 arc) {
        const i64 tail = tails[arc], head = heads[arc], more = hops[tail] + 1 - hops[head];
        if (more <= 0 || tail == head) return;
        double key = (sums[tail] + lengths[arc] - sums[head]) / (double)more;
        if (!(key > keys[arc])) return;
        keys[arc] = key = std::min(key, rate);
        heap.emplace_back(-key, arc);
        std::push_heap(heap.begin(), heap.end(), std::greater<std::pair<double, i64>>());
    }

    // The tree of fewest arcs, of these the longest, and the heap of keys.
    FXENORM_EACH_ROUNDED void plant() {
        hops[root] = 0;
        std::vector<i64> layer(1, root), further;
        while (!layer.empty()) {
            further.clear();
            for (i64 tail : layer)
                for (i64 arc : outward[tail]) {
                    const i64 head = heads[arc];
                    const double total = sums[tail] + lengths[arc];
                    if (hops[head] < 0) {
                        hops[head] = hops[tail] + 1;
                        further.push_back(head);
                    } else if (hops[head] != hops[tail] + 1 || total <= sums[head]) {
                        continue;
                    }
                    sums[head] = total;
                    parents[head] = tail;
                }
            layer.swap(further);
        }
        for (i64 node = 0; node < count; ++node)
            if (parents[node] >= 0) add_child(parents[node], node);
        for (i64 arc = 0; arc < (i64)keys.size(); ++arc) raise_key(arc);
    }

    // Makes the paths of some subtrees, those on the stack, longer; their nodes are in `moved`.
    FXENORM_EACH_ROUNDED void move(i64 more, double length) {
        moved.clear();
        while (!stack.empty()) {
            const i64 node = stack.back();
            stack.pop_back();
            hops[node] += more;
            sums[node] += length;
            moved.push_back(node);
            for (i64 child = first_child[node]; child >= 0; child = next_child[child]) stack.push_back(child);
        }
    }

    void hang(i64 node, i64 below, i64 more, double length) {
        drop_child(parents[node], node);
        add_child(below, node);
        parents[node] = below;
        stack.assign(1, node);
        move(more, length);
        for (i64 each : moved)
            for (i64 arc : outward[each]) raise_key(arc);
    }

    FXENORM_EACH_ROUNDED void absorb(i64 node, i64 kept, double offset) {
        merged.push_back(node);
        merged_into.push_back(kept);
        merged_offset.push_back(offset);
        for (i64 arc : outward[node]) {
            tails[arc] = kept;
            lengths[arc] += offset;
        }
        for (i64 arc : inward[node]) {
            heads[arc] = kept;
            lengths[arc] -= offset;
        }
        outward[kept].insert(outward[kept].end(), outward[node].begin(), outward[node].end());
        inward[kept].insert(inward[kept].end(), inward[node].begin(), inward[node].end());
        std::vector<i64>().swap(outward[node]);
        std::vector<i64>().swap(inward[node]);
        for (i64 child = first_child[node]; child >= 0;) {
            const i64 after = next_child[child];
            parents[child] = kept;
            add_child(kept, child);
            child = after;
        }
        first_child[node] = -1;
        following[last[kept]] = first[node];
        gaps[last[kept]] = rate;
        last[kept] = last[node];
    }

    // Makes one node of the path, given from its lower end.
    FXENORM_EACH_ROUNDED void contract() {
        const i64 top = path.back();
        for (size_t at = 0; at + 1 < path.size(); ++at) drop_child(path[at + 1], path[at]);
        const double reference = sums[top] - rate * (double)hops[top];
        std::vector<double> offsets;
        size_t place = 0, most = 0;
        for (size_t at = 0; at < path.size(); ++at) {
            const i64 node = path[at];
            offsets.push_back(sums[node] - rate * (double)hops[node] - reference);
            const size_t size = outward[node].size() + inward[node].size() + (size_t)children[node];
            if (at == 0 || size > most) place = at, most = size;
        }
        const i64 kept = path[place];
        risen.clear();
        for (size_t at = 0; at + 1 < path.size(); ++at) {
            const i64 node = path[at], fewer = hops[node] - hops[top];
            for (i64 child = first_child[node]; child >= 0; child = next_child[child]) stack.push_back(child);
            move(-fewer, -rate * (double)fewer);
            for (i64 each : moved) risen.insert(risen.end(), inward[each].begin(), inward[each].end());
            risen.insert(risen.end(), inward[node].begin(), inward[node].end());
        }
        sums[kept] -= rate * (double)(hops[kept] - hops[top]);
        hops[kept] = hops[top];
        if (kept != top) {
            const i64 above = parents[top];
            if (above >= 0) {
                drop_child(above, top);
                add_child(above, kept);
            } else {
                root = kept;
            }
            parents[kept] = above;
        }
        for (size_t at = 0; at < path.size(); ++at)
            if (path[at] != kept) absorb(path[at], kept, offsets[at] - offsets[place]);
        left -= (i64)path.size() - 1;
        for (i64 arc : risen) raise_key(arc);
    }

    // Changes the tree, or contracts a cycle, where the largest key says so; false where the graph is not strongly connected.
    FXENORM_EACH_ROUNDED bool run() {
        const double never = -std::numeric_limits<double>::infinity();
        const std::greater<std::pair<double, i64>> later{};
        while (left > 1) {
            if (heap.empty()) return false;
            const double known = -heap.front().first;
            const i64 arc = heap.front().second;
            std::pop_heap(heap.begin(), heap.end(), later);
            heap.pop_back();
            const i64 tail = tails[arc], head = heads[arc];
            if (known != keys[arc] || tail == head) continue;
            const i64 more = hops[tail] + 1 - hops[head];
            const double key = more > 0 ? (sums[tail] + lengths[arc] - sums[head]) / (double)more : never;
            if (key < known) {
                keys[arc] = key;
                if (more > 0) {
                    heap.emplace_back(-key, arc);
                    std::push_heap(heap.begin(), heap.end(), later);
                }
                continue;
            }
            rate = std::min(rate, key);
            path.assign(1, tail);
            i64 node = tail;
            while (hops[node] > hops[head]) {
                node = parents[node];
                path.push_back(node);
            }
            if (node == head) {
                contract();
            } else {
                keys[arc] = never;
                hang(head, tail, more, sums[tail] + lengths[arc] - sums[head]);
            }
        }
        return true;
    }
};

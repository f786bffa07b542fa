"""Max-balanced potentials of a graph, by contraction of bottleneck cycles on a parametric path tree.

A cycle that has the largest mean length of all ends with all its arcs at that mean. It becomes one node, and the next cycle
follows. A tree of longest paths from the root, for arcs that are shortened by a number which falls, shows these cycles one by
one (Schneider and Schneider 1991; the tree after Young, Tarjan and Orlin 1991). Keys wait in a heap: those that have risen are
entered again at once, those that have fallen when their turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from .entries import Floats, Ids
from .levels import Levels

__all__ = ["Contracted", "contracted"]


@dataclass(frozen=True)
class Contracted:
    """The answer of `contracted`.

    Attributes:
        potential: (n,) x = length + potential[head] - potential[tail] is max-balanced; 0 at the root.
        levels: the value at which any two nodes became one.
    """

    potential: Floats
    levels: Levels


Faster = Callable[[int, Ids, Ids, Floats], tuple[Floats, Ids, Floats] | None]
"""Does the same in compiled code: minus the potentials, the nodes in their line, and the levels there; None: it cannot."""


def contracted(count: int, tails: Ids, heads: Ids, lengths: Floats, faster: Faster | None = None) -> Contracted:
    """Returns the max-balanced potential of a strongly connected graph whose root is node 0.

    Args:
        count: number of nodes n.
        tails, heads: (m,) the nodes of each arc.
        lengths: (m,) finite.
        faster: takes the same steps in compiled code; None: there is none.

    Example:
        >>> graph = np.array([0, 1]), np.array([1, 0]), np.array([4.0, 0.0])
        >>> contracted(2, *graph).potential.tolist()  # both arcs become 2
        [0.0, -2.0]
    """
    known = None if faster is None else faster(count, tails, heads, lengths)
    if known is not None:
        offsets, line, gaps = known
        return Contracted(offsets[0] - offsets, Levels.from_line(line, gaps))
    # Of equal keys the arc with the lower number comes first; numbers are in the order of the tails, as in compiled code.
    order = np.argsort(tails, kind="stable")
    work = _Contraction(count, tails[order].tolist(), heads[order].tolist(), lengths[order].tolist())
    work.plant()
    work.run()
    total = [0.0] * count
    for node, into, offset in reversed(work.merges):
        total[node] = total[into] + offset
    return Contracted(total[0] - np.array(total), Levels.from_chain(work.first[work.root], work.following, work.gaps))


class _Contraction:
    """The state of the contraction; a merged node goes by the number of one of its members.

    Of node v, the tree path has `sums[v]` as its length and `hops[v]` arcs; the number by which arcs are shortened is `rate`.
    """

    def __init__(self, count: int, tails: list[int], heads: list[int], lengths: list[float]) -> None:
        self.tails, self.heads, self.lengths = tails, heads, lengths
        self.outward: list[list[int]] = [[] for _ in range(count)]
        self.inward: list[list[int]] = [[] for _ in range(count)]
        for arc, (tail, head) in enumerate(zip(tails, heads, strict=True)):
            self.outward[tail].append(arc)
            self.inward[head].append(arc)
        self.hops, self.sums, self.parents = [-1] * count, [0.0] * count, [-1] * count
        self.children: list[set[int]] = [set() for _ in range(count)]
        self.root, self.left, self.rate = 0, count, math.inf
        self.keys = [-math.inf] * len(tails)
        self.heap: list[tuple[float, int]] = []
        self.merges: list[tuple[int, int, float]] = []
        self.first, self.last = list(range(count)), list(range(count))
        self.following, self.gaps = [-1] * count, [0.0] * count

    def plant(self) -> None:
        """Builds the tree of fewest arcs, of these the longest, and the heap of keys."""
        hops, sums, parents, heads, lengths = self.hops, self.sums, self.parents, self.heads, self.lengths
        hops[self.root] = 0
        layer = [self.root]
        while layer:
            further = []
            for tail in layer:
                steps = hops[tail] + 1
                for arc in self.outward[tail]:
                    head, total = heads[arc], sums[tail] + lengths[arc]
                    if hops[head] < 0:
                        hops[head] = steps
                        further.append(head)
                    elif hops[head] != steps or total <= sums[head]:
                        continue
                    sums[head], parents[head] = total, tail
            layer = further
        for node, parent in enumerate(parents):
            if parent >= 0:
                self.children[parent].add(node)
        self._raise_keys(range(len(heads)))
        heapify(self.heap)

    def _raise_keys(self, arcs: Iterable[int]) -> None:
        """Enters arcs whose key has risen: the rate at which the path through the arc overtakes the path in the tree."""
        tails, heads, lengths, hops, sums = self.tails, self.heads, self.lengths, self.hops, self.sums
        keys, heap, rate = self.keys, self.heap, self.rate
        for arc in arcs:
            tail, head = tails[arc], heads[arc]
            more = hops[tail] + 1 - hops[head]
            if more > 0 and tail != head:
                key = (sums[tail] + lengths[arc] - sums[head]) / more
                if key > keys[arc]:
                    keys[arc] = key = min(key, rate)
                    heappush(heap, (-key, arc))

    def run(self) -> None:
        """Changes the tree, or contracts a cycle, where the largest key says so, until one node is left."""
        tails, heads, lengths, hops, sums = self.tails, self.heads, self.lengths, self.hops, self.sums
        keys, heap, parents = self.keys, self.heap, self.parents
        while self.left > 1:
            negative, arc = heappop(heap)
            tail, head = tails[arc], heads[arc]
            if -negative != keys[arc] or tail == head:
                continue
            more = hops[tail] + 1 - hops[head]
            key = (sums[tail] + lengths[arc] - sums[head]) / more if more > 0 else -math.inf
            if key < -negative:
                keys[arc] = key
                if more > 0:
                    heappush(heap, (-key, arc))
                continue
            self.rate = min(self.rate, key)
            lowest, node, path = hops[head], tail, [tail]
            while hops[node] > lowest:
                node = parents[node]
                path.append(node)
            if node == head:
                self._contract(path)
            else:
                keys[arc] = -math.inf
                self._hang(head, tail, more, sums[tail] + lengths[arc] - sums[head])

    def _hang(self, node: int, below: int, hops: int, length: float) -> None:
        """Hangs the subtree of `node` below another; its paths get longer by so many arcs and by this length."""
        self.children[self.parents[node]].discard(node)
        self.children[below].add(node)
        self.parents[node] = below
        moved = self._moved([node], hops, length)
        self._raise_keys(arc for each in moved for arc in self.outward[each])

    def _moved(self, nodes: Iterable[int], hops: int, length: float) -> list[int]:
        """Makes the paths of some subtrees longer; returns their nodes."""
        stack, moved = list(nodes), []
        own_hops, own_sums, children = self.hops, self.sums, self.children
        while stack:
            node = stack.pop()
            own_hops[node] += hops
            own_sums[node] += length
            moved.append(node)
            if children[node]:
                stack.extend(children[node])
        return moved

    def _contract(self, path: list[int]) -> None:
        """Makes one node of a path of the tree, given from its lower end; its arcs become as long as the rate."""
        top, rate = path[-1], self.rate
        hops, sums, children = self.hops, self.sums, self.children
        for child, node in pairwise(path):
            children[node].discard(child)
        reference = sums[top] - rate * hops[top]
        offsets = [sums[node] - rate * hops[node] - reference for node in path]
        # The member with the most arcs keeps its number, so that few arcs change theirs.
        sizes = [len(self.outward[node]) + len(self.inward[node]) + len(children[node]) for node in path]
        place = sizes.index(max(sizes))
        kept = path[place]
        risen: list[int] = []
        for node in path[:-1]:
            fewer = hops[node] - hops[top]
            for moved in self._moved(children[node], -fewer, -rate * fewer):
                risen += self.inward[moved]
            risen += self.inward[node]
        sums[kept] -= rate * (hops[kept] - hops[top])
        hops[kept] = hops[top]
        self._take_place(top, kept)
        for node, offset in zip(path, offsets, strict=True):
            if node != kept:
                self._absorb(node, kept, offset - offsets[place])
        self.left -= len(path) - 1
        self._raise_keys(risen)

    def _take_place(self, top: int, kept: int) -> None:
        """Puts the kept node where the top of its cycle was in the tree."""
        above = self.parents[top]
        if kept == top:
            return
        if above >= 0:
            self.children[above].discard(top)
            self.children[above].add(kept)
        else:
            self.root = kept
        self.parents[kept] = above

    def _absorb(self, node: int, kept: int, offset: float) -> None:
        """Gives the arcs of a node to the one that it is merged into."""
        self.merges.append((node, kept, offset))
        tails, heads, lengths = self.tails, self.heads, self.lengths
        for arc in self.outward[node]:
            tails[arc] = kept
            lengths[arc] += offset
        for arc in self.inward[node]:
            heads[arc] = kept
            lengths[arc] -= offset
        self.outward[kept] += self.outward[node]
        self.inward[kept] += self.inward[node]
        self.outward[node], self.inward[node] = [], []
        for child in self.children[node]:
            self.parents[child] = kept
        self.children[kept] |= self.children[node]
        self.following[self.last[kept]] = self.first[node]
        self.gaps[self.last[kept]], self.last[kept] = self.rate, self.last[node]

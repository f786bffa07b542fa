"""Levels of pairs of nodes: the largest value at which they are connected both ways by arcs that are no smaller."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .entries import Floats, Ids, Mask

__all__ = ["Levels", "bottleneck_levels"]


@dataclass(frozen=True)
class Levels:
    """Nodes in a line in which those that are connected at a high level are neighbours.

    Attributes:
        places: (n,) where each node stands.
        least: (rows, n - 1) the level between neighbours, and in row k the least of 2^k gaps from each on.
    """

    places: Ids
    least: Floats

    @staticmethod
    def from_line(line: Ids, gaps: Floats) -> Levels:
        """Returns levels from all nodes in their order and the (n - 1,) levels between neighbours."""
        places = np.empty(len(line), dtype=np.int64)
        places[line] = np.arange(len(line), dtype=np.int64)
        return Levels.from_gaps(places, gaps)

    @staticmethod
    def from_chain(first: int, following: list[int], gaps: list[float]) -> Levels:
        """Returns levels from a linked list of all nodes and the level between each and its follower."""
        line = [first]
        for _ in range(len(following) - 1):
            line.append(following[line[-1]])
        order = np.array(line, dtype=np.int64)
        return Levels.from_line(order, np.asarray(gaps, dtype=np.float64)[order[:-1]])

    @staticmethod
    def from_gaps(places: Ids, gaps: Floats) -> Levels:
        """Returns levels from the nodes' places and the (n - 1,) levels between neighbours."""
        rows, width = [gaps], 1
        while 2 * width <= len(gaps):
            before = rows[-1]
            after = np.append(before[width:], np.full(width, np.inf))
            rows.append(np.minimum(before, after))
            width *= 2
        return Levels(places, np.stack(rows))

    @property
    def lowest(self) -> float:
        """The level at which all nodes are connected; inf where there is one alone."""
        return float(self.least[0].min()) if self.least.shape[1] else np.inf

    def of(self, one: Ids, other: Ids) -> Floats:
        """Returns the levels of some pairs of nodes; inf for a node and itself."""
        here, there = self.places[one], self.places[other]
        low, high = np.minimum(here, there), np.maximum(here, there)
        gaps = high - low
        found = np.full(gaps.shape, np.inf)
        some = gaps > 0
        low, high, gaps = low[some], high[some], gaps[some]
        row = np.frexp(gaps.astype(np.float64))[1].astype(np.int64) - 1
        found[some] = np.minimum(self.least[row, low], self.least[row, high - (1 << row)])
        return found

    def are_met(self, arcs: tuple[Ids, Ids, Floats], slack: float) -> bool:
        """Whether a graph's nodes are at least as connected as these levels say: each two by arcs no smaller than their level.

        Nodes that one level joins are the children of one node of a tree, and an arc that is as large as the level of its ends
        joins two of them. All nodes are connected as the levels say if each node's children are strongly connected by such arcs.

        Args:
            arcs: tails, heads and values, each (m,), of which none is larger than the level of its ends but for the slack.
            slack: a difference of values that counts as none.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        tails, heads, values = arcs
        gaps = self.least[0]
        if not len(values) or not len(gaps):
            return not len(gaps)
        levels = self.of(tails, heads)
        some = (tails != heads) & (values >= levels - slack)
        levels = levels[some]
        # The gap in front of a child stands for it; the first child of a node has no gap of the node's level there.
        firsts = self._first_gaps()
        here, there = (self._gap_before(self.places[nodes[some]], levels) for nodes in (tails, heads))
        ends = []
        for own, other in ((here, there), (there, here)):
            is_first = (own < 0) | (gaps[own] < levels)
            ends.append(np.where(is_first, len(gaps) + firsts[np.where(is_first, other, 0)], own))
        ones, size = np.ones(len(levels), dtype=np.int8), 2 * len(gaps)
        graph = csr_array((ones, (ends[0], ends[1])), shape=(size, size))
        parts = connected_components(graph, directed=True, connection="strong", return_labels=False)
        # Levels below all values are no levels of these arcs: what they join is not connected.
        return bool(parts == size - int((gaps >= values.min() - slack).sum()))

    def _gap_before(self, places: Ids, levels: Floats) -> Ids:
        """Returns the last gap before each place that is no larger than its level; -1 where there is none."""
        found = places.copy()
        for row in range(len(self.least) - 1, -1, -1):
            width = 1 << row
            before = found - width
            found = np.where((before >= 0) & (self.least[row, np.maximum(before, 0)] > levels), before, found)
        return np.asarray(found - 1)

    def _first_gaps(self) -> Ids:
        """Returns for each gap the first of those that join children of the same node."""
        gaps = self.least[0]
        before = self._gap_before(np.arange(len(gaps), dtype=np.int64), gaps)
        own = np.arange(len(gaps), dtype=np.int64)
        found = np.where((before >= 0) & (gaps[before] == gaps), before, own)
        while not np.array_equal(found, found[found]):
            found = found[found]
        return found


def bottleneck_levels(count: int, tails: Ids, heads: Ids, values: Floats) -> Levels:
    """Returns the levels of a graph's nodes: -inf for those that no cycle joins.

    The strong components of all arcs above some value are found for many ranges of values at once: arcs within a component go
    on to larger values, and arcs between components, each now one node, to smaller ones.

    Args:
        count: number of nodes n.
        tails, heads: (m,) the nodes of each arc.
        values: (m,) finite.
    """
    order = np.argsort(-values, kind="stable")
    known, ranks = np.unique(-values[order], return_inverse=True)
    tails, heads, low = tails[order].copy(), heads[order].copy(), np.zeros(len(order), dtype=np.int64)
    high = np.full(len(order), len(known), dtype=np.int64)
    merged: list[tuple[Ids, Ids, Ids]] = [(low[:0], low[:0], low[:0])]
    while len(tails):
        middle = np.where(high - low > 1, (low + high) // 2, high)
        larger = ranks < middle
        tail_parts, head_parts = _representatives(count, low, (tails, heads), larger)
        leaf = high - low == 1
        done = leaf & (tail_parts == head_parts)
        for nodes, parts in ((tails, tail_parts), (heads, head_parts)):
            some = done & (nodes != parts)
            merged.append((nodes[some], parts[some], low[some]))
        inside = ~leaf & (tail_parts == head_parts) & larger
        across = ~leaf & (tail_parts != head_parts)
        low, high = np.where(across, middle, low)[inside | across], np.where(inside, middle, high)[inside | across]
        tails, heads = (
            np.where(across, parts, nodes)[inside | across] for nodes, parts in ((tails, tail_parts), (heads, head_parts))
        )
        ranks = ranks[inside | across]
    nodes, into, levels = (np.concatenate(part) for part in zip(*merged, strict=True))
    return _chained(count, (nodes, into, levels), -known)


def _representatives(count: int, low: Ids, ends: tuple[Ids, Ids], which: Mask) -> tuple[Ids, Ids]:
    """Returns the least node of the strong component of each arc's ends, by range and with some of the arcs alone."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    known, numbers = np.unique(np.concatenate([low * count + nodes for nodes in ends]), return_inverse=True)
    tails, heads = numbers.reshape(2, -1)
    ones = np.ones(int(which.sum()), dtype=np.int8)
    graph = csr_array((ones, (tails[which], heads[which])), shape=(len(known), len(known)))
    total, component = connected_components(graph, directed=True, connection="strong")
    least = np.full(total, np.iinfo(np.int64).max)
    np.minimum.at(least, component, known)
    nodes = least[component] % count
    return nodes[tails], nodes[heads]


def _chained(count: int, merged: tuple[Ids, Ids, Ids], values: Floats) -> Levels:
    """Puts nodes in a line, given which were merged with which others, and the rank of the value at which they were."""
    parents, first, last = list(range(count)), list(range(count)), list(range(count))
    following, gaps = [-1] * count, [-np.inf] * count

    order = np.argsort(merged[2], kind="stable")
    levels = values[merged[2][order]].tolist()
    for node, other, level in zip(*(part[order].tolist() for part in merged[:2]), levels, strict=True):
        # Each goes over to the node that stands for all that have been merged with it.
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        while parents[other] != other:
            parents[other] = other = parents[parents[other]]
        if node != other:
            end = last[other]
            following[end], gaps[end], last[other] = first[node], level, last[node]
            parents[node] = other
    chains = [node for node, parent in enumerate(parents) if parent == node]
    for one, other in pairwise(chains):
        following[last[one]] = first[other]
    return Levels.from_chain(first[chains[0]], following, gaps)

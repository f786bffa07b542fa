"""Entries as arcs between variables, their negatives and zero: which variables belong together, and what is no arc.

An entry of one or two variables of coefficients 1 or -1, or of one with 2 or -2, is an arc from the negative of one signed
variable to another, and at the same time its mirror image. Where signs can be chosen so that every entry of a part has one
variable on each side, one of the two images of the part is enough. Everything fixed is the node zero, and parts that only zero
joins do not touch one another. Entries with more variables make their part general.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .entries import Entries, Floats, Ids, Mask
from .levels import Levels

__all__ = ["Arcs", "Structure", "is_arc"]


def is_arc(entries: Entries) -> Mask:
    """(n,) whether each entry is an arc: at most two variables, whose coefficients are no larger than 2 together."""
    return np.asarray(np.abs(entries.coefficients).sum(axis=1) <= 2)


@dataclass(frozen=True)
class Arcs:
    """Entries as arcs from one signed variable to another; k stands for variable k, K + k for its negative, 2 K for zero.

    Attributes:
        tails, heads: (n,) along each, the logarithm grows by the head and falls by the tail.
    """

    tails: Ids
    heads: Ids

    @staticmethod
    def of(entries: Entries, count: int) -> Arcs:
        """Returns the arcs of entries that are arcs, of K variables."""
        last, value = entries.ids[:, -1], entries.coefficients[:, -1]
        heads = np.where(value > 0, last, last + count)
        tails = np.where(np.abs(value) == 2, mirrored(heads, count), 2 * count)
        if entries.ids.shape[1] > 1:
            other, factor = entries.ids[:, -2], entries.coefficients[:, -2]
            tails = np.where(other >= 0, np.where(factor > 0, other + count, other), tails)
        return Arcs(tails, heads)


def mirrored(nodes: Ids, count: int) -> Ids:
    """Returns the negatives of signed variables."""
    return np.where(nodes >= 2 * count, nodes, np.where(nodes < count, nodes + count, nodes - count))


class Structure:
    """The parts of a list of entries.

    Args:
        entries: finite ones that carry a variable.
        count: number of variables K.

    Attributes:
        count: K.
        arcs: the entries that lie in parts of arcs alone, as arcs between nodes that are numbered without gaps.
        nodes: (nodes,) the signed variable of each of these numbers; zero has the number 0.
        general: the other entries.
        general_variables: (K,) bool: variables of these.
        values: (arcs,) the logarithms of the arcs.
    """

    def __init__(self, entries: Entries, count: int) -> None:
        self.count = count
        simple = is_arc(entries)
        part = self._parts(entries, simple)
        variables = part[:count], part[count : 2 * count]
        first = np.minimum(*variables)
        hard = np.zeros(len(part) + 1, dtype=bool)
        hard[first[entries.ids[~simple].max(axis=1)]] = True
        used = np.zeros(count, dtype=bool)
        used[entries.ids[entries.ids >= 0]] = True
        self.general_variables = used & hard[first]
        in_arcs = used & ~self.general_variables
        # Of two images of a part, the one with the lower number; a part that is its own image has one number.
        kept = np.concatenate([in_arcs & (own == first) for own in variables])
        self.nodes = np.append(2 * count, np.flatnonzero(kept))
        self._numbers = np.full(2 * count + 1, -1, dtype=np.int64)
        self._numbers[self.nodes] = np.arange(len(self.nodes), dtype=np.int64)
        is_general = self.general_variables[entries.ids.max(axis=1)]
        self.general = entries.chosen(is_general)
        self.arcs, self.values = self._both_images(entries.chosen(~is_general))

    def _parts(self, entries: Entries, simple: Mask) -> Ids:
        """(2 K,) the number of the part of each signed variable; general entries join both signs of all their variables."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        count = self.count
        found = Arcs.of(entries.chosen(simple), count)
        joined = (found.tails < 2 * count) & (found.heads < 2 * count)
        ends = [(found.tails[joined], found.heads[joined])]
        ends.append((mirrored(ends[0][0], count), mirrored(ends[0][1], count)))
        hard = entries.chosen(~simple)
        first = hard.ids.max(axis=1)
        for column in hard.ids.T:
            some = column >= 0
            ends += [(first[some], column[some]), (first[some], column[some] + count)]
        one, other = (np.concatenate(nodes) for nodes in zip(*ends, strict=True))
        graph = csr_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(2 * count, 2 * count))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    def _both_images(self, entries: Entries) -> tuple[Arcs, Floats]:
        """Returns those images of entries whose nodes are kept, in the numbers of the nodes, with their logarithms."""
        found = Arcs.of(entries, self.count)
        tails = np.concatenate([found.tails, mirrored(found.heads, self.count)])
        heads = np.concatenate([found.heads, mirrored(found.tails, self.count)])
        kept = (self._numbers[tails] >= 0) & (self._numbers[heads] >= 0)
        # An arc from a variable to its own negative is its own image.
        kept[len(entries) :] &= (found.tails != mirrored(found.heads, self.count)) | (found.tails == 2 * self.count)
        return Arcs(self._numbers[tails[kept]], self._numbers[heads[kept]]), np.concatenate([entries.logs, entries.logs])[kept]

    def values_after(self, change: Floats) -> Floats:
        """(arcs,) the logarithms of the arcs after a rescaling by (K,) log-scales."""
        moved = np.concatenate([change, -change, np.zeros(1)])[self.nodes]
        return np.asarray(self.values + moved[self.arcs.heads] - moved[self.arcs.tails])

    @property
    def images(self) -> Ids:
        """(nodes,) the number of the mirror image of each node; -1 where that is none."""
        return np.asarray(self._numbers[mirrored(self.nodes, self.count)])

    def log_scales(self, potential: Floats) -> Floats:
        """(K,) the log-scales that belong to potentials of the nodes; 0 for variables that are no nodes."""
        total, images = np.zeros(self.count), np.zeros(self.count)
        signed = self.nodes[1:]
        np.add.at(total, signed % self.count, np.where(signed < self.count, 1.0, -1.0) * (potential[1:] - potential[0]))
        np.add.at(images, signed % self.count, 1.0)
        return total / np.maximum(images, 1.0)

    def levels_of(self, entries: Entries, levels: Levels) -> Floats:
        """(n,) the level of each entry; where it joins several parts, or is no arc, that of the lowest with zero.

        At that level all its variables are fixed, so that an entry no larger changes nothing.
        """
        found = np.full(len(entries), -np.inf)
        simple = is_arc(entries)
        places = np.flatnonzero(simple)
        arcs = Arcs.of(entries if len(places) == len(entries) else entries.chosen(places), self.count)
        tails, heads = arcs.tails, arcs.heads
        for _ in range(2):
            one, other = self._numbers[tails], self._numbers[heads]
            both = (one >= 0) & (other >= 0)
            if both.all():
                found[places] = levels.of(one, other)
                places = places[:0]
                break
            found[places[both]] = levels.of(one[both], other[both])
            places, tails, heads = places[~both], mirrored(heads[~both], self.count), mirrored(tails[~both], self.count)
        if len(places) or not simple.all():
            # Nodes that are mirror images of one another have the same level with zero.
            to_zero = self.levels_to_zero(levels)
            if len(places):
                found[places] = np.minimum(to_zero[tails], to_zero[heads])
            found[~simple] = np.append(to_zero[: self.count], np.inf)[entries.ids[~simple]].min(axis=1)
        return found

    def levels_to_zero(self, levels: Levels) -> Floats:
        """(2 K + 1,) the level of each signed variable with zero; -inf where it is no node."""
        found = np.full(2 * self.count + 1, -np.inf)
        own = levels.of(np.arange(len(self.nodes), dtype=np.int64), np.zeros(len(self.nodes), dtype=np.int64))
        found[self.nodes] = own
        images = mirrored(self.nodes, self.count)
        found[images] = np.maximum(found[images], own)
        return found

"""All counted entries, of which the solver of p = inf sees the largest, and those that are above their level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .entries import Entries, Floats, Ids, Mask, distinct
from .levels import Levels
from .structure import Structure

__all__ = ["Deciding", "EntrySource", "Levelled", "above_levels", "first_entries", "moving"]

_MANY, _EACH = 4, 3
"""Entries above their level, by number of variables, of which only this many in and out of each variable join at a time: where
nothing is near the answer, all entries are above, and the rest of them would not be in a later round."""


class EntrySource(Protocol):
    """All counted entries, of which the solver sees few."""

    def largest_entries(self, log_scales: Floats, count: int) -> Entries:
        """Returns so many of the largest entries in and out of each variable after a rescaling, by their logs before it."""

    def entries_where(self, log_scales: Floats, least: Floats, choose: Callable[[Entries], Mask]) -> Entries:
        """Returns those of all entries above a value after a rescaling that are chosen, by their logs before it."""

    def remember(self, entries: Deciding) -> None:
        """Keeps the entries that have decided, for the next who asks."""

    def remembered(self) -> Deciding | None:
        """Returns the entries that decided last; None: nobody has left any."""

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Floats) -> tuple[Floats, Ids, Floats] | None:
        """Contracts the bottleneck cycles of a graph in compiled code, as `contracted` takes it; None: there is none."""


@dataclass(frozen=True)
class Levelled:
    """The parts of some entries, and the levels of their nodes."""

    structure: Structure
    levels: Levels

    def least(self, free: Mask) -> Floats:
        """(K,) by variable, a value that no entry which carries it can be above its level without being larger than.

        The level of two nodes is no lower than the lower one of their levels with zero, which is fixed.
        """
        return np.where(free, self.structure.levels_to_zero(self.levels)[: len(free)], np.inf)


@dataclass(frozen=True)
class Deciding:
    """The entries that have decided: a good beginning for who asks about the same variables.

    Attributes:
        entries: as `moving` returns them.
        free: (K,) the variables that moved.
        log_scales: (K,) where they ended, and where the others were.
        levelled: parts and levels of which a look at all entries has shown that none is above, there; None: no look has.
        values: (arcs,) the logarithms of the arcs of these parts, there.
        slack: a difference of logarithms that counted as none.
    """

    entries: Entries
    free: Mask
    log_scales: Floats
    levelled: Levelled | None = None
    values: Floats | None = None
    slack: float = 0.0

    def serve(self, free: Mask, log_scales: Floats) -> bool:
        """Whether the same variables move, and the others are where they were."""
        return np.array_equal(self.free, free) and np.array_equal(self.log_scales[~free], log_scales[~free])

    def show_balance(self, free: Mask, log_scales: Floats) -> bool:
        """Whether these entries, with the look that was taken, show that no entry is above its level at some log-scales.

        No entry was above the levels, and these are no higher than they are if the entries connect all nodes as the levels say.
        """
        if self.levelled is None or self.values is None:
            return False
        if not (np.array_equal(self.free, free) and np.array_equal(self.log_scales, log_scales)):
            return False
        arcs = self.levelled.structure.arcs
        return self.levelled.levels.are_met((arcs.tails, arcs.heads, self.values), 2.0 * self.slack)


def first_entries(source: EntrySource, log_scales: Floats, free: Mask, count: int) -> Entries:
    """Returns entries to begin with, as `moving` returns them: those that have decided, or so many of the largest."""
    known = source.remembered()
    if known is not None and known.serve(free, log_scales):
        return known.entries
    return moving(source.largest_entries(log_scales, count), free, log_scales)


def moving(entries: Entries, free: Mask, log_scales: Floats) -> Entries:
    """Returns the entries that free variables move, one of each exponents; the other variables stay at their log-scales."""
    reduced = entries.reduced(free, log_scales)
    return distinct(reduced.chosen(reduced.movable))


def above_levels(source: EntrySource, log_scales: Floats, free: Mask, known: Levelled, margin: float) -> Entries:
    """Returns the entries that are above their level by more than a margin, as `moving` returns them; of many, the farthest."""

    def choose(entries: Entries) -> Mask:
        """Returns which of some entries are above."""
        reduced = entries.reduced(free, log_scales)
        chosen = reduced.movable
        some = reduced.chosen(chosen)
        chosen[chosen] = some.at(log_scales).logs > known.structure.levels_of(some, known.levels) + margin
        return chosen

    found = moving(source.entries_where(log_scales, known.least(free) + margin, choose), free, log_scales)
    if len(found) <= _MANY * len(free):
        return found
    scores = found.at(log_scales).logs - known.structure.levels_of(found, known.levels)
    return found.chosen(_farthest(found, scores))


def _farthest(entries: Entries, scores: Floats) -> Ids:
    """Returns the places of the entries of the highest scores in and out of each variable, with ties by size."""
    found = []
    for ids, coefficients in zip(entries.ids.T, entries.coefficients.T, strict=True):
        groups = np.where(coefficients > 0, 2 * ids + 1, 2 * ids)
        order = np.lexsort((-entries.logs, -scores, groups))
        own = groups[order]
        starts = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
        rank = np.arange(len(own)) - np.repeat(starts, np.diff(np.append(starts, len(own))))
        found.append(order[(rank < _EACH) & (own >= 0)])
    return np.unique(np.concatenate(found))

"""Parts with entries of three or more variables: which variables they hold, and their answer where they are small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .entries import Entries, Floats, Mask, distinct, joined
from .general import exponent_matrix, lexicographic_least
from .source import EntrySource, moving

__all__ = ["GeneralPart", "general_part"]

_MOST_VARIABLES, _MOST_ENTRIES = 64, 4000
"""The largest part that linear programs are used on: each variable may take one, of as many rows as there are entries. At this
size one takes some 30 ms."""


@dataclass(frozen=True)
class GeneralPart:
    """Variables that entries join, of which some carry three or more.

    Attributes:
        variables: (K,) bool.
        entries: all of them, one of each exponents; None: they are too many for linear programs.
    """

    variables: Mask
    entries: Entries | None

    def exponents(self, entries: Entries) -> Floats:
        """Returns (n, variables) the exponents of the entries."""
        return exponent_matrix(entries, np.flatnonzero(self.variables))

    def solved(self, log_scales: Floats) -> Floats:
        """Returns the (K,) log-scales after this part has its answer."""
        entries = Entries.none() if self.entries is None else self.entries
        change, _ = lexicographic_least(self.exponents(entries), entries.at(log_scales).logs)
        found = log_scales.copy()
        found[self.variables] += change
        return np.asarray(found)


def general_part(source: EntrySource, log_scales: Floats, free: Mask, variables: Mask) -> GeneralPart:
    """Returns some variables with all that any entries join them to, and these entries.

    Args:
        source: the entries.
        log_scales: (K,) natural logarithms.
        free: (K,) the variables that move.
        variables: (K,) where to begin.
    """
    while True:
        entries = _touching(source, log_scales, free, variables)
        wider = variables.copy()
        if entries is not None:
            wider[entries.ids[entries.ids >= 0]] = True
        if entries is None or int(wider.sum()) > _MOST_VARIABLES:
            return GeneralPart(_joined(source, log_scales, free, wider), None)
        if bool((wider == variables).all()):
            return GeneralPart(variables, entries)
        variables = wider


def _joined(source: EntrySource, log_scales: Floats, free: Mask, variables: Mask) -> Mask:
    """(K,) some variables and all that any entries join them to, by one look at all entries."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    known: set[bytes] = set()

    def choose(entries: Entries) -> Mask:
        """Keeps one entry of all that carry the same variables."""
        some = entries.reduced(free, log_scales)
        places = np.flatnonzero(some.movable)
        rows, first = np.unique(some.ids[places], axis=0, return_index=True)
        new = [row.tobytes() not in known for row in rows]
        known.update(row.tobytes() for row in rows)
        chosen = np.zeros(len(entries), dtype=bool)
        chosen[places[first[new]]] = True
        return chosen

    ids = source.entries_where(log_scales, np.where(free, -np.inf, np.inf), choose).reduced(free, log_scales).ids
    ends = np.concatenate([np.stack([column, ids[:, -1]], axis=1)[column >= 0] for column in ids.T])
    graph = csr_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(len(free), len(free)))
    part = connected_components(graph, directed=False)[1]
    return np.asarray(np.isin(part, part[variables]) & free)


def _touching(source: EntrySource, log_scales: Floats, free: Mask, variables: Mask) -> Entries | None:
    """Returns all entries that carry some variables, one of each exponents; None where they are too many."""
    if int(variables.sum()) > _MOST_VARIABLES:
        return None
    known = Entries.none()
    padded = np.append(variables, False)

    def choose(entries: Entries) -> Mask:
        """Keeps those that are not known, and none where they are too many."""
        nonlocal known
        some = entries.reduced(free, log_scales)
        chosen = some.movable & padded[some.ids].any(axis=1)
        if len(known) > _MOST_ENTRIES:
            return np.zeros_like(chosen)
        known = distinct(joined([known, some.chosen(chosen)]))
        return chosen

    found = moving(source.entries_where(log_scales, np.where(variables, -np.inf, np.inf), choose), free, log_scales)
    return None if len(found) > _MOST_ENTRIES else found

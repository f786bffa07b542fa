"""The answer for a large p from few entries: those that matter at some log-scales, Newton steps on them, and a look at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..max_balance.entries import Entries, Floats, Mask
from ..max_balance.rounds import max_balanced
from ..max_balance.source import EntrySource
from .moves import moves_of, sparse_exponents
from .sums import SetSums, summed

__all__ = ["Kind", "Looked", "ahead_of", "look", "near_sums", "solved", "stepped"]

_LARGEST = 3
"""Entries in and out of each variable by which the moves are found."""

_FEW = 200_000
"""Entries up to which moves are worked out anew from all that matter: a second in Python."""

_DIGITS = 37.0
"""Natural logarithms below a move's largest entry, over p, beyond which entries do not matter: a million are 1e-10 of it."""

_MOST_ROUNDS, _MOST_STEPS, _PATIENCE = 6, 120, 30
"""Looks at all entries; Newton steps between two of them, and those in a row that lower no imbalance, as far from the answer they
may. p = 512 takes 2 looks and 8 steps on a folded resnet18."""

_FAR = 8.0
"""Where some log(N / P) is larger than this, the answer of p = inf comes first: at that they are some 2, on nets of any depth."""

_ENOUGH, _ROUNDING = 0.01, 2e-16
"""The share of the tolerance at which steps end; and rounding errors of an imbalance, times the largest logarithm."""


@dataclass(frozen=True)
class Looked:
    """The answer of all entries at some log-scales.

    Attributes:
        entries: those that matter.
        sums: N and P of moves of sets, over these.
        imbalance: the largest |log(N / P)| / p of these moves.
        widest: the largest sum of |exponents| of an entry.
    """

    entries: Entries
    sums: SetSums
    imbalance: float
    widest: float


class Kind:
    """How entries become sums of moves: those of one norm."""

    def moves(self, entries: Entries, log_scales: Floats, free: Mask) -> Any:
        """Returns a basis of the moves of the free variables that suits some entries; see `moves_of`."""
        return moves_of(entries, log_scales, np.flatnonzero(free))

    def sums(self, p: float, entries: Entries, moves: Any) -> SetSums:
        """Returns the sums of these moves over entries, one of each exponents."""
        return SetSums(p, entries, moves)


_NORM = Kind()


def near_sums(source: EntrySource, p: float, log_scales: Floats, free: Mask, kind: Kind = _NORM) -> SetSums:
    """Returns sums over the largest entries alone, with moves that suit them.

    Args:
        source: all entries.
        p: the norm's exponent.
        log_scales: (K,) natural logarithms.
        free: (K,) the variables that move.
        kind: how entries become sums.
    """
    found = source.largest_entries(log_scales, _LARGEST).reduced(free, log_scales)
    return _by_strongest(p, found.chosen(found.movable), log_scales, free, kind)


def _by_strongest(p: float, entries: Entries, log_scales: Floats, free: Mask, kind: Kind) -> SetSums:
    """Returns sums over some entries, with moves that suit them."""
    known = summed(p, entries)
    return kind.sums(p, known, kind.moves(known, log_scales, free))


def look(
    source: EntrySource, p: float, log_scales: Floats, free: Mask, known: Entries | None = None, kind: Kind = _NORM
) -> Looked:
    """Returns what all entries say: sums over those that matter; arguments as `near_sums` takes them.

    `known` are those that mattered at log-scales nearby, which spares a look at the largest ones.
    """
    few = known is not None and 0 < len(known) <= _FEW
    strongest = known if known is not None and few else None
    near = (
        near_sums(source, p, log_scales, free, kind) if strongest is None else _by_strongest(p, strongest, log_scales, free, kind)
    )
    moves, below = near.moves, _DIGITS / p
    levels = near.largest(log_scales)
    padding = np.array([np.inf])
    least = np.where(free, _least_by_row(moves, levels.min(axis=0)), np.inf) - below

    def choose(entries: Entries) -> Mask:
        """Returns which of some entries matter to a side of a move, as far as its largest are known by now."""
        reduced = entries.reduced(free, log_scales)
        logs, chosen = reduced.at(log_scales).logs, reduced.movable
        weakest = np.append(_least_by_row(moves, levels.min(axis=0)), padding)
        chosen &= logs > weakest[reduced.ids].min(axis=1) - below
        changes = (sparse_exponents(reduced.chosen(chosen), len(free)) @ moves).tocoo()
        own, side = logs[chosen][changes.row], (changes.data > 0).astype(np.int64)
        np.maximum.at(levels, (side, changes.col), own)
        matters = (changes.data != 0) & (own > levels[side, changes.col] - below)
        kept = np.zeros(int(chosen.sum()), dtype=bool)
        kept[changes.row[matters]] = True
        chosen[chosen] = kept
        return chosen

    found = source.entries_where(log_scales, least, choose).reduced(free, log_scales)
    found = found.chosen(found.movable)
    sums = kind.sums(p, summed(p, found), moves)
    # Every term of every tensor has a largest entry.
    widest = float(np.abs(near.entries.coefficients).sum(axis=1).max(initial=1))
    return Looked(found, sums, sums.imbalance(log_scales), widest)


def _least_by_row(matrix: object, values: Floats) -> Floats:
    """Returns by row of a sparse matrix the least of some values over the columns in which it is not 0; inf without any."""
    from scipy.sparse import csr_array

    rows = csr_array(matrix)
    found = np.full(rows.shape[0], np.inf)
    some = np.diff(rows.indptr) > 0
    if some.any():
        found[some] = np.minimum.reduceat(values[rows.indices], rows.indptr[:-1][some])
    return found


def solved(source: EntrySource, p: float, start: Floats, free: Mask, tol: float) -> tuple[Floats, float]:
    """Returns the (K,) log-scales at which every move is balanced to a tolerance, or the best that were reached; and how well.

    Args:
        source, p: as `near_sums` takes them.
        start: (K,) near the answer, as that of p = inf is: its distance in p x_e is a small number.
        free: (K,) the variables that move.
        tol: the imbalance to reach.
    """
    best, least, at = start, math.inf, start
    known: Entries | None = None
    for number in range(_MOST_ROUNDS):
        looked = look(source, p, at, free, known)
        known = looked.entries
        if looked.imbalance < least:
            best, least = at, looked.imbalance
        if looked.imbalance <= _ENOUGH * tol or not len(looked.sums.entries):
            break
        if p * looked.imbalance > _FAR and number == 0:
            at, known = max_balanced(source, at, free).log_scales, None
            continue
        at = stepped(looked.sums, at, _ENOUGH * tol)
    return best, least


def stepped(sums: SetSums, start: Floats, enough: float) -> Floats:
    """Returns the (K,) log-scales after Newton steps on some entries, until the imbalance is small enough or falls no more."""
    size = 1.0 + float(np.abs(sums.entries.logs).max(initial=0.0))
    at, best, least, since = start, start, math.inf, 0
    for _ in range(_MOST_STEPS):
        imbalance = sums.imbalance(at)
        best, least, since = (at, imbalance, 0) if imbalance < least else (best, least, since + 1)
        if imbalance <= max(enough, _ROUNDING * size) or since > _PATIENCE:
            break
        ahead = ahead_of(sums, at)
        if ahead is None:
            break
        at = ahead
    return best


def ahead_of(sums: SetSums, log_scales: Floats) -> Floats | None:
    """Returns the (K,) log-scales after a Newton step; None where it leads nowhere."""
    ahead = log_scales + sums.step(log_scales)
    return None if np.array_equal(ahead, log_scales) or not np.isfinite(ahead).all() else ahead

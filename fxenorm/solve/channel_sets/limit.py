"""p = inf as the limit of growing p, for entries of any exponents, with a bound on how far it is from max-balanced.

Once p times the gaps between levels is large, log-scales are those of p = inf and a vector over p, but for what is exponentially
small: two powers give the limit. And where all moves are balanced at some p, the p-th powers of all entries are, but for what
rounding does, weights of a combination of exponents that is zero. It is a sum of at most n elementary ones, so each entry e is in
one whose entries are all at least x_e - log(2 n k) / p, k the largest ratio of two weights of an elementary one: by Cramer's rule
and Hadamard's bound at most the product of the lengths of V rows of exponents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..max_balance.entries import Entries, Floats, Mask
from ..max_balance.source import EntrySource
from .moves import moves_of
from .solver import look, solved, stepped
from .sums import SetSums, summed

__all__ = ["Limit", "limit_of_powers"]

_FIRST, _GROWTH, _LAST = 512.0, 4.0, 1e10
"""Exponents. Beyond the last, rounding of x_e, some 1e-16 of a number below 10, times p would be more than 1e-5."""

_FAR, _BEFORE, _BEFORE_TOL = 30.0, (4.0, 16.0, 64.0), 1e-2
"""Where some log(N / P) is larger at the first exponent, smaller ones come before it, not to the last digit."""

_ENOUGH = 1e-6
"""The log(N / P) at which steps for one exponent end."""

_BALANCED = 0.1
"""The largest log(N / P), times the number of moves, that leaves each weight of the combination half as large at least."""

_MANY = math.log(2.0**41)
"""Twice the entries that any model has, more or less."""

_MOST_TRIES = 3
"""Exponents at which a bound is looked for, from the largest down: where moves are many, rounding may spoil it there."""

_MOST_LOOKS = 4
"""Looks at all entries: the first says which matter for p = 512 and all above, unless log-scales move by more than 37 / 512."""


@dataclass(frozen=True)
class Limit:
    """The limit, and what is known of it.

    Attributes:
        log_scales: (K,) of p = inf.
        certified: (K,) of the largest exponent, next to them, at which the residual has a bound.
        bound: of the residual there, natural logarithms; inf where nothing is known.
        widest: the largest sum of |exponents| of an entry.
    """

    log_scales: Floats
    certified: Floats
    bound: float
    widest: float

    def residual_at(self, log_scales: Floats) -> float:
        """Returns a bound on the residual at any (K,) log-scales: entries move against one another on the way there."""
        return self.bound + 2.0 * self.widest * float(np.abs(log_scales - self.certified).max(initial=0.0))


def limit_of_powers(source: EntrySource, start: Floats, free: Mask) -> Limit:
    """Returns the log-scales of p = inf of the free variables, and a bound on their residual.

    Args:
        source: all entries.
        start: (K,) at best near the answer for p = 512.
        free: (K,) the variables that move.
    """
    at = start
    for number in range(_MOST_LOOKS):
        looked = look(source, _FIRST, at, free)
        if number == 0 and _FIRST * looked.imbalance > _FAR:
            for p in _BEFORE:
                at, _ = solved(source, p, at, free, _BEFORE_TOL)
            looked = look(source, _FIRST, at, free)
        known = looked.entries
        reached = _answers(known, at, free)
        last, before = reached[-1][1], reached[-2][1]
        limit = last + (last - before) / (_GROWTH - 1.0)
        for p, certified in reversed(reached[-_MOST_TRIES:]):
            final = look(source, p, certified, free)
            moves = final.sums.moves.shape[1]
            if p * final.imbalance * moves <= _BALANCED:
                return Limit(limit, certified, (_MANY + moves * math.log(final.widest)) / p, final.widest)
        at = last
    return Limit(at, at, math.inf, 1.0)


def _answers(entries: Entries, start: Floats, free: Mask) -> list[tuple[float, Floats]]:
    """Returns exponents that grow, each with its (K,) log-scales, for some entries."""
    found = [(_FIRST, _answer(entries, _FIRST, start, free))]
    while (p := found[-1][0] * _GROWTH) <= _LAST:
        at = found[-1][1]
        # s_p = s + d / p, so the way from p / 4 to p is a quarter of the one before.
        ahead = at + (at - found[-2][1]) / _GROWTH if len(found) > 1 else at
        found.append((p, _answer(entries, p, ahead, free)))
    return found


def _answer(entries: Entries, p: float, start: Floats, free: Mask) -> Floats:
    """Returns the (K,) log-scales for one exponent and some entries."""
    sums = SetSums(p, summed(p, entries), moves_of(entries, start, np.flatnonzero(free)))
    return stepped(sums, start, _ENOUGH / p)

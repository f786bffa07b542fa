"""Large powers in a sum of terms, within the iteration that minimises it: when sets of channels have to be looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..limits import numbers, within_limits
from ..max_balance.entries import Entries, Floats, Ids, Mask
from .large_power import ROUNDING, LargePower
from .solver import ahead_of, look, near_sums, stepped
from .sums import SetSums
from .term_sums import TermKind, TermSource

__all__ = ["LargeTerms", "Terms"]

_FROM_SETS = 100.0
"""Where an exponent is above this, Newton's method on sums by channel creeps, and sets of channels are balanced at once."""

_FAR, _FIRST, _GROWTH, _FAR_TOL = 30.0, 2.0, 4.0, 1e-2
"""Where some log(N / P) is above the first, smaller powers come before: all of them that much smaller, so that the largest is the
second, and so many times more at each turn; each to this log-scale."""

_STALLED, _STALLED_FAR, _LOWER = 5, 15, 0.9
"""Iterations in a row that do not lower the imbalance by a tenth, near the answer and far from it, after which sets of channels
are balanced; as in `fxenorm.solve.channel_sets.large_power`."""

_MOST_ROUNDS, _MOST_STEPS, _ENOUGH = 8, 60, 0.01
"""Looks at all entries; steps between two of them; and the share of the tolerance at which these end."""


class Terms(TermSource, Protocol):
    """A sum of terms at the current weights, as sets of channels are balanced in it."""

    @property
    def limit(self) -> Tensor:
        """(2, K) how far log-scales may go up and down."""

    @property
    def degree(self) -> Tensor:
        """(K,) any numbers, in the type and on the device of log-scales."""

    @property
    def steepness(self) -> float:
        """The largest exponent by which an entry follows a log-scale."""

    @property
    def sums_kept(self) -> Sequence[Ids]:
        """The sets of variables whose sum stays 0."""

    def free(self, log_scales: Tensor) -> Mask:
        """(K,) the variables that may move and that the function depends on."""

    def log_sums(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (K,) logs of the two sides of the derivative, less what sums that stay make of it."""

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of all that is added up in the derivative."""


class LargeTerms:
    """Finishes what sums by channel cannot: one object for one solution.

    Args:
        terms: the function.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._kind = TermKind(terms, terms.degree.numel(), terms.sums_kept)
        self._least, self._stalled = math.inf, 0

    applies = staticmethod(LargePower.applies)

    @property
    def _is_steep(self) -> bool:
        """Whether Newton's method on sums by channel is not asked at all."""
        return self._terms.is_sums and self._terms.steepness > _FROM_SETS

    def leads(self, imbalance: float) -> bool:
        """Notes the imbalance of one more iteration; whether Newton's method on sums by channel gets no further."""
        near = self._terms.steepness * imbalance <= 1.0
        self._stalled = self._stalled + 1 if imbalance >= _LOWER * self._least else 0
        self._least = min(self._least, imbalance)
        return self._stalled >= (_STALLED if near else _STALLED_FAR) or self._is_steep

    def _padded(self, log_scales: Floats, free: Mask) -> tuple[Floats, Mask]:
        """Returns log-scales with those of normalised sums behind them, and which of them entries are looked at with."""
        extra = len(self._terms.totals)
        found = np.append(log_scales, np.zeros(extra))
        return self._terms.settled(found), np.append(free, np.ones(extra, dtype=bool))

    def imbalance(self, log_scales: Tensor, stopped: Tensor, tol: float) -> float:
        """Returns the largest imbalance of sets of channels, or a bound on it that is at most `tol`.

        Args:
            log_scales: (K,) where.
            stopped: (K,) bool: variables that a limit has stopped, which count as fixed.
            tol: the tolerance.
        """
        terms = self._terms
        moving = terms.free(log_scales) & ~stopped.cpu().numpy()
        if not moving.any():
            return 0.0
        at, free = self._padded(numbers(log_scales), moving)
        # A normalised sum bends less than its entries do, so there they bound nothing.
        if not len(terms.totals) and (bound := self._bound(log_scales, at, free)) <= tol:
            return bound
        return look(terms, 1.0, at, free, None, self._kind).imbalance

    def _bound(self, log_scales: Tensor, at: Floats, free: Mask) -> float:
        """Returns a bound from sums by channel and the largest entries: the derivative by a move is the sum of its channels'."""
        terms = self._terms
        negative, positive = (numbers(side) for side in terms.log_sums(log_scales))
        near = near_sums(terms, 1.0, at, free, self._kind)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            off = np.logaddexp(negative, positive) + np.log(np.tanh(np.abs(negative - positive) / 2))
            off = np.logaddexp(off, numbers(terms.log_sizes(log_scales)) + math.log(ROUNDING))
            off = np.where(free, off, -np.inf)
            moves = near.moves.tocoo()
            unknown = off[moves.row] - near.log_curvatures(at)[moves.col] + np.log(np.abs(moves.data))
            bounds = np.bincount(moves.col, np.exp(unknown), minlength=near.moves.shape[1])
        return 2.0 * float(np.nan_to_num(bounds, nan=np.inf).max(initial=0.0))

    def __call__(self, log_scales: Tensor, tol: float) -> Tensor:
        """Returns the (K,) log-scales at which sets of channels are balanced too, or as near as was reached."""
        terms, count = self._terms, log_scales.numel()
        self._stalled = 0

        def answer(at: Floats, moving: Mask) -> Floats:
            """Returns the answer without limits."""
            padded, free = self._padded(at, moving)
            return self._solved(padded, free, tol)[:count]

        found = within_limits(terms, numbers(log_scales), terms.free(log_scales), answer)
        return torch.from_numpy(found).to(log_scales)

    def _solved(self, start: Floats, free: Mask, tol: float) -> Floats:
        """Returns the log-scales of all terms, from those of smaller powers where they are far."""
        terms = self._terms
        if terms.is_sums:
            looked = look(terms, 1.0, start, free, None, self._kind)
            share = _FIRST / terms.steepness
            while looked.imbalance * terms.steepness > _FAR and share < 1.0:
                start = self._stepped(share, start, free, _FAR_TOL)
                share *= _GROWTH
        return self._stepped(1.0, start, free, tol)

    def _stepped(self, share: float, start: Floats, free: Mask, tol: float) -> Floats:
        """Returns the log-scales at which every move is balanced, all exponents times a share; or the best that were reached."""
        best, least, at = start, math.inf, start
        known: Entries | None = None
        for _ in range(_MOST_ROUNDS):
            looked = look(self._terms, share, at, free, known, self._kind)
            known = looked.entries
            if looked.imbalance < least:
                best, least = at, looked.imbalance
            if looked.imbalance <= _ENOUGH * tol:
                break
            step = stepped if self._terms.is_sums else _descended
            at = self._terms.settled(step(looked.sums, at, _ENOUGH * tol))
        # Far from the answer steps of other functions lower the value, and the imbalance says little.
        return best if self._terms.is_sums or least * self._terms.steepness <= 1.0 else at


def _descended(sums: SetSums, start: Floats, enough: float) -> Floats:
    """Returns log-scales after steps none of which raises the function, until the imbalance is small enough or none lowers it."""
    at = start
    for _ in range(_MOST_STEPS):
        if sums.imbalance(at) <= enough:
            break
        ahead = ahead_of(sums, at)
        if ahead is None:
            break
        at = ahead
    return at

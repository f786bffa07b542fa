"""Large p within the iteration of Newton's method: when sets of channels have to be looked at, and the answer for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..jacobi import solvable
from ..limits import numbers, within_limits
from ..max_balance.entries import Floats, Mask
from ..max_balance.rounds import max_balanced
from ..objective import Objective
from .solver import look, near_sums, solved

__all__ = ["ROUNDING", "LargePower"]

_SUMS_ALONE = 4.0
"""Up to this p sums by channel decide alone: weights of one layer differ by less than the fourth root of a float64's digits."""

_FROM_LIMIT = 100.0
"""Above this p the answer of p = inf is the start: some 3 / p away, and Newton's method on sums by channel creeps."""

_STALLED, _LOWER = 5, 0.9
"""Iterations in a row that do not lower the imbalance by a tenth, after which sets of channels are balanced: where N and P are
within a factor of e, Newton's method squares it, or rounding is in the way."""

_FALLS = 0.1
"""A bound on the imbalance of sets that is this share of the last one falls still: another of Newton's iterations costs less than
a look at all entries, which are as many numbers as the weights where p is small."""

ROUNDING = 1e-13
"""What rounding leaves unknown of a channel's N - P, relative to N + P."""


class LargePower:
    """Finishes what sums by channel cannot: one object for one solution.

    Args:
        objective: with finite p.
        start: returns (K,) log-scales near those of p = inf, from which its answer is found.

    Attributes:
        falls: whether the last imbalance is a bound that Newton's method on sums by channel lowers still.
    """

    def __init__(self, objective: Objective, start: Callable[[Tensor], Tensor]) -> None:
        self._objective, self._start, self._begun = objective, start, False
        self._known: tuple[Tensor, float] | None = None
        self._least_gap, self._stalled, self._bound, self.falls = 1.0, 0, 1.0, False

    @staticmethod
    def applies(p: float) -> bool:
        """Whether sums by channel may be blind to sets of channels at this exponent."""
        return _SUMS_ALONE < p < np.inf

    @property
    def _is_large(self) -> bool:
        """Whether Newton's method on sums by channel would creep, so that it is not asked at all."""
        return self._objective.p > _FROM_LIMIT

    def leads(self, imbalance: float) -> bool:
        """Notes the imbalance of one more iteration; whether Newton's method on sums by channel gets no further.

        Rounding of the objective may send it to and fro between two points.
        """
        gap = self._objective.p * imbalance
        self._stalled = self._stalled + 1 if _LOWER * self._least_gap <= gap <= 1.0 else 0
        self._least_gap = min(self._least_gap, gap)
        return self._is_large or self._stalled >= _STALLED

    def imbalance(self, log_scales: Tensor, stopped: Tensor, tol: float) -> float:
        """Returns the largest |log(N / P)| / p over sets of channels, or a bound on it that is at most `tol` or falls.

        Where a move leaves its strongest entries alone, its N - P is the sum of those of its channels. So a bound follows from
        sums by channel and the largest entries, and all entries are looked at only where it says nothing.

        Args:
            log_scales: (K,) where.
            stopped: (K,) bool: variables that a limit has stopped, which count as fixed.
            tol: the tolerance.
        """
        if self._known is not None and self._known[0] is log_scales and not bool(stopped.any()):
            return self._known[1]
        objective, p = self._objective, self._objective.p
        log_negative, log_positive = objective.log_sums(log_scales)
        alive = solvable(log_negative, log_positive, objective.held) & ~stopped
        free, at = _mask(alive), numbers(log_scales)
        if not free.any():
            return 0.0
        negative, positive = numbers(log_negative), numbers(log_positive)
        near = near_sums(objective, p, at, free)
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.log(np.tanh(np.abs(negative - positive) / 2) + ROUNDING) + np.logaddexp(negative, positive)
            off = np.where(free, off, -np.inf)
            moves = near.moves.tocoo()
            unknown = off[moves.row] - p * near.largest(at).max(axis=0)[moves.col] + np.log(np.abs(moves.data))
            bounds = np.bincount(moves.col, np.exp(unknown), minlength=near.moves.shape[1])
        bound = float(np.nan_to_num(bounds, nan=np.inf).max(initial=0.0)) / p
        self.falls, self._bound = tol < bound < _FALLS * self._bound, bound
        return bound if bound <= tol or self.falls else look(objective, p, at, free).imbalance

    def __call__(self, log_scales: Tensor, tol: float) -> Tensor:
        """Returns the (K,) log-scales at which sets of channels are balanced too; those given where they are no better."""
        objective, p = self._objective, self._objective.p
        first, self._begun = self._is_large and not self._begun, True
        log_negative, log_positive = objective.log_sums(log_scales)
        free = _mask(solvable(log_negative, log_positive, objective.held))
        start = numbers(log_scales)
        if first:
            near = numbers(self._start(log_scales))
            start = max_balanced(objective, np.where(free, near, start), free).log_scales
        reached: list[tuple[Floats, float]] = []

        def answer(at: Floats, moving: Mask) -> Floats:
            """Returns the answer without limits."""
            reached.append(solved(objective, p, at, moving, tol))
            return reached[-1][0]

        found = within_limits(objective, start, free, answer)
        ahead = torch.from_numpy(found).to(log_scales)
        before, after = (float(value) for value in objective.log_objectives([log_scales, ahead]))
        if after > before + 1e-12 * (1.0 + abs(before)):
            return log_scales
        # What was found without a limit in the way needs no second look.
        self._known = (ahead, reached[-1][1]) if len(reached) == 1 and np.array_equal(found, reached[0][0]) else None
        return ahead


def _mask(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Returns a mask for numpy."""
    return tensor.cpu().numpy()

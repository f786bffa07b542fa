"""p = inf as one outer iteration: a start by an easier norm, the max-balanced answer, and limits on the way to it."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..channel_sets.limit import limit_of_powers
from ..iterate import solve
from ..jacobi import solvable
from ..limits import numbers, within_limits
from ..objective import Objective
from ..registry import Solver, register_solver
from .entries import Floats, Mask
from .rounds import MaxBalanced, max_balanced

__all__ = ["MaxBalance"]

_START_P, _START_TOL, _START_ITERATIONS = 2.0, 2.0, 12
"""The start: an imbalance of 2 is near enough; nearer saves no round on chains, residual networks and a U-Net."""

_START_SWEEPS = 30
"""Sweeps in place of that start where powers of the weights are not to be had: a bound on the time; any start is good."""

_LARGE_P, _LARGE_TOL, _LARGE_ITERATIONS = (8.0, 32.0, 128.0), 1e-3, 30
"""Exponents on the way to p = inf where too many entries of three or more variables meet for linear programs."""


class MaxBalance:
    """The max-balanced log-scales, in one call; a second call changes nothing."""

    def __init__(self) -> None:
        self._found: Tensor | None = None

    def __call__(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the (K,) max-balanced log-scales, within the objective's limit."""
        if self._found is not None:
            return log_scales
        free = solvable(log_negative, log_positive, objective.held)
        start = _start(objective, log_scales)
        begun = numbers(torch.where(free, start, log_scales))
        found = within_limits(objective, begun, free.cpu().numpy(), partial(_answer, objective))
        self._found = torch.from_numpy(found).to(log_scales)
        return self._found


def _start(objective: Objective, log_scales: Tensor) -> Tensor:
    """Returns the (K,) log-scales of an easier norm, which are near those of p = inf."""
    easier = objective.softened(_START_P)
    if easier is None:
        found = solve(objective, tol=_START_TOL, max_iterations=_START_SWEEPS, start=log_scales, solver="gauss-seidel")
    else:
        found = solve(easier, tol=_START_TOL, max_iterations=_START_ITERATIONS, start=log_scales, solver="newton")
    return found.log_scales


def _answer(objective: Objective, log_scales: Floats, moving: Mask) -> Floats:
    """Returns the (K,) max-balanced log-scales of the variables that move, without limits."""
    answer = max_balanced(objective, log_scales, moving)
    return _of_large_p(objective, answer) if answer.open.any() else answer.log_scales


def _of_large_p(objective: Objective, answer: MaxBalanced) -> Floats:
    """Returns the (K,) log-scales, those that were left open as the limit of exponents that grow."""
    where = torch.from_numpy(answer.log_scales).to(objective.degree)
    for p in _LARGE_P:
        easier = objective.softened(p)
        if easier is not None:
            where = solve(easier, tol=_LARGE_TOL, max_iterations=_LARGE_ITERATIONS, start=where, solver="newton").log_scales
        # Its matrices are freed before those of the next are made.
        del easier
    start = np.where(answer.open, numbers(where), answer.log_scales)
    return limit_of_powers(objective, start, answer.open).log_scales


register_solver("max-balance", Solver(MaxBalance, largest=True))

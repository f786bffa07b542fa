"""p = inf as one outer iteration: a start by an easier norm, the max-balanced answer, and limits on the way to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..iterate import solve
from ..jacobi import clamped, solvable
from ..objective import Objective
from ..registry import Solver, register_solver
from .entries import Floats, Mask
from .rounds import MaxBalanced, max_balanced

__all__ = ["MaxBalance"]

_START_P, _START_TOL, _START_ITERATIONS = 2.0, 0.03, 12
"""The start: an imbalance of a few per cent is far below the distance of the two answers, which is 0.3 to 1."""

_START_SWEEPS = 30
"""Sweeps in place of that start where powers of the weights are not to be had: a bound on the time; any start is good."""

_LARGE_P, _LARGE_TOL, _LARGE_ITERATIONS = (8.0, 32.0, 128.0, 512.0), 1e-6, 30
"""Exponents in the place of p = inf where too many entries of three or more variables meet: at 512 the log-scales of an example
were within 1e-2 of the answer, and beyond it weak entries vanish beside strong ones."""

_LAST_SWEEPS = 200
"""Sweeps after these, which bring the largest entries in and out of each variable together: they are near already."""

_MOST_LIMITS = 10
"""How often variables are put to their limits, or taken away from them, before the rest is left as it is."""


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
        found = _within_limits(objective, _numbers(torch.where(free, start, log_scales)), free.cpu().numpy())
        self._found = torch.from_numpy(found).to(log_scales)
        return self._found


def _numbers(tensor: Tensor) -> Floats:
    """Returns a vector for numpy, in float64 on the CPU."""
    return tensor.to(device="cpu", dtype=torch.float64).numpy()


def _start(objective: Objective, log_scales: Tensor) -> Tensor:
    """Returns the (K,) log-scales of an easier norm, which are near those of p = inf."""
    easier = objective.softened(_START_P)
    if easier is None:
        found = solve(objective, tol=_START_TOL, max_iterations=_START_SWEEPS, start=log_scales, solver="gauss-seidel")
    else:
        found = solve(easier, tol=_START_TOL, max_iterations=_START_ITERATIONS, start=log_scales, solver="newton")
    return found.log_scales


def _within_limits(objective: Objective, start: Floats, free: Mask) -> Floats:
    """Returns the max-balanced log-scales of which those that would pass their limit stop there."""
    limit = objective.limit if objective.limit.ndim == 2 else objective.limit.expand(2, -1)
    up, down = _numbers(limit[0]), -_numbers(limit[1])
    log_scales, moving = start, free.copy()
    for _ in range(_MOST_LIMITS):
        answer = max_balanced(objective, log_scales, moving)
        found = _of_large_p(objective, answer) if answer.open.any() else answer.log_scales
        log_scales = np.clip(found, down, up) if moving.any() else found
        over = moving & ((found > up) | (found < down))
        stopped = free & ~moving & ~over
        if not over.any() and not stopped.any():
            break
        negative, positive = (_numbers(sums) for sums in objective.log_sums(torch.from_numpy(log_scales).to(objective.degree)))
        # At its limit a variable stays where its larger side pulls it out, and is let go where that pulls it back.
        inward = stopped & np.where(log_scales >= up, negative < positive, negative > positive)
        if not over.any() and not inward.any():
            break
        moving = (moving & ~over) | inward
    return _numbers(clamped(torch.from_numpy(log_scales), torch.from_numpy(np.stack([up, -down]))))


def _of_large_p(objective: Objective, answer: MaxBalanced) -> Floats:
    """Returns the (K,) log-scales, those that were left open by exponents that grow."""
    where = torch.from_numpy(answer.log_scales).to(objective.degree)
    for p in _LARGE_P:
        easier = objective.softened(p)
        if easier is None:
            return _numbers(where)
        where = solve(easier, tol=_LARGE_TOL, max_iterations=_LARGE_ITERATIONS, start=where, solver="newton").log_scales
    where = torch.where(torch.from_numpy(answer.open).to(where.device), where, torch.from_numpy(answer.log_scales).to(where))
    swept = solve(objective, tol=_LARGE_TOL, max_iterations=_LAST_SWEEPS, start=where, solver="gauss-seidel").log_scales
    return np.where(answer.open, _numbers(swept), answer.log_scales)


register_solver("max-balance", Solver(MaxBalance, largest=True))

"""Coordinate descent as solvers: Jacobi cycles, all variables at once, and Gauss-Seidel cycles, group after group."""

from __future__ import annotations

import math

from torch import Tensor

from .jacobi import clamped, imbalance, jacobi_step
from .objective import Objective
from .registry import Solver, register_solver

__all__ = ["GaussSeidel", "Jacobi", "gauss_seidel_sweep"]


class _Sweeps:
    """Cycles that do not ring.

    On loops of even length a cycle can overshoot by exactly its own length and ring for ever; where a cycle points against
    the one before and the imbalance does not fall, half of it is taken, which ends the ringing at once. The objective is
    convex and does not rise over a whole cycle, so it does not over half of one.
    """

    def __init__(self) -> None:
        self._previous: Tensor | None = None
        self._imbalance = math.inf

    def __call__(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the (K,) log-scales after one cycle; never raises the objective."""
        ahead = self.sweep(objective, log_scales, log_negative, log_positive)
        step = ahead - log_scales
        worst = float(imbalance(log_negative, log_positive, objective.p, objective.held))
        if self._previous is not None and worst > 0.9 * self._imbalance and bool((step * self._previous).sum() < 0):
            step = step / 2
            ahead = log_scales + step
        self._previous, self._imbalance = step, worst
        return ahead

    def sweep(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the (K,) log-scales after one plain cycle, within the limit."""
        raise NotImplementedError


class Jacobi(_Sweeps):
    """All variables at once, from the same sums: ENorm's cycle."""

    def sweep(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the (K,) log-scales after one plain cycle, within the limit."""
        step = jacobi_step(log_negative, log_positive, objective.degree, objective.p, objective.held)
        return clamped(log_scales + step, objective.limit)


class GaussSeidel(_Sweeps):
    """Group after group in the order of the pair graph, each from the sums that the groups before it left."""

    def sweep(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the (K,) log-scales after one plain cycle, within the limit."""
        return gauss_seidel_sweep(objective, log_scales)


def gauss_seidel_sweep(objective: Objective, log_scales: Tensor) -> Tensor:
    """(K,) the log-scales after every group has once been balanced against all others; waits for nothing.

    A group whose entries carry one variable each with exponent 1 lands on its exact minimum. For p = inf the limit of
    repeated sweeps is a balanced point, but which one depends on the order (Schulman and Sinclair, 2015).
    """
    current = log_scales
    for group in objective.group_updates:
        variables = group.variables
        log_negative, log_positive = group.sums(current)
        step = jacobi_step(log_negative, log_positive, objective.degree[variables], objective.p, objective.held[variables])
        current = current.index_put((variables,), clamped(current[variables] + step, objective.limit[..., variables]))
    return current


register_solver("jacobi", Solver(Jacobi))
register_solver("gauss-seidel", Solver(GaussSeidel))

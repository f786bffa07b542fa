"""Coordinate descent as solvers: Jacobi and Gauss-Seidel cycles, each with or without a coarse correction in front."""

from __future__ import annotations

import math

from torch import Tensor

from .coarse import coarse_correction
from .jacobi import clamped, imbalance, jacobi_step, solvable
from .objective import Objective, register_solver

__all__ = ["GaussSeidel", "Jacobi", "gauss_seidel_sweep"]


class _Sweeps:
    """Cycles that do not ring.

    On loops of even length a cycle can overshoot by exactly its own length and ring for ever; where a cycle points against
    the one before and the imbalance does not fall, half of it is taken, which ends the ringing at once. The objective is
    convex and does not rise over a whole cycle, so it does not over half of one.

    Args:
        coarse: whether one scalar a group is solved for exactly before each cycle.
    """

    def __init__(self, coarse: bool = False) -> None:
        self._coarse = coarse
        self._previous: Tensor | None = None
        self._imbalance = math.inf

    def __call__(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """One cycle; never raises the objective."""
        if self._coarse and math.isfinite(objective.p):
            log_scales = coarse_correction(objective, log_scales, solvable(log_negative, log_positive, objective.held))
            log_negative, log_positive = objective.log_sums(log_scales)
        ahead = self.sweep(objective, log_scales, log_negative, log_positive)
        step = ahead - log_scales
        worst = float(imbalance(log_negative, log_positive, objective.p, objective.held))
        if self._previous is not None and worst > 0.9 * self._imbalance and bool((step * self._previous).sum() < 0):
            step = step / 2
            ahead = log_scales + step
        self._previous, self._imbalance = step, worst
        return ahead

    def sweep(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """One plain cycle."""
        raise NotImplementedError


class Jacobi(_Sweeps):
    """All variables at once, from the same sums: ENorm's cycle."""

    def sweep(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """One plain cycle."""
        step = jacobi_step(log_negative, log_positive, objective.degree, objective.p, objective.held)
        return clamped(log_scales + step, objective.limit)


class GaussSeidel(_Sweeps):
    """Group after group in the order of the pair graph, each from the sums that the groups before it left."""

    def sweep(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """One plain cycle."""
        return gauss_seidel_sweep(objective, log_scales)


def gauss_seidel_sweep(objective: Objective, log_scales: Tensor) -> Tensor:
    """(K,) the log-scales after every group has once been balanced against all others; waits for nothing.

    A group whose entries carry one variable each with exponent 1 lands on its exact minimum. For p = inf the limit of
    repeated sweeps is a balanced point, but which one depends on the order (Schulman and Sinclair, 2015).
    """
    current = log_scales
    for stage in objective.stages:
        own = stage.variables
        log_negative, log_positive = stage.sums(current)
        step = jacobi_step(log_negative, log_positive, objective.degree[own], objective.p, objective.held[own])
        current = current.index_put((own,), clamped(current[own] + step, objective.limit[..., own]))
    return current


register_solver("jacobi", Jacobi)
register_solver("gauss-seidel", GaussSeidel)
register_solver("coarse-jacobi", lambda: Jacobi(coarse=True))
register_solver("coarse-gauss-seidel", lambda: GaussSeidel(coarse=True))

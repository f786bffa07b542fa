"""Sweeps with the coarse correction in front of each: two more solvers, on which the tests of solvers run too."""

from __future__ import annotations

import math

from torch import Tensor

from fxenorm.solve.coarse import coarse_correction
from fxenorm.solve.jacobi import solvable
from fxenorm.solve.objective import Cycle, Objective
from fxenorm.solve.registry import Solver, register_solver
from fxenorm.solve.sweeps import GaussSeidel, Jacobi


class CoarseFirst:
    """Solves for one scalar a group exactly, then runs one cycle of another solver."""

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle

    def __call__(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        if math.isfinite(objective.p):
            log_scales = coarse_correction(objective, log_scales, solvable(log_negative, log_positive, objective.held))
            log_negative, log_positive = objective.log_sums(log_scales)
        return self._cycle(objective, log_scales, log_negative, log_positive)


TEST_SOLVERS = {
    "coarse-jacobi": Solver(lambda: CoarseFirst(Jacobi())),
    "coarse-gauss-seidel": Solver(lambda: CoarseFirst(GaussSeidel())),
}

for _name, _solver in TEST_SOLVERS.items():
    register_solver(_name, _solver)

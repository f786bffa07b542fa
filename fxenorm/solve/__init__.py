"""From channel sums to log-scales: pure functions of small tensors, and the table of solvers.

In: log N and log P of every variable. Out: natural log-scales, one a variable. Imports nothing of fxenorm but `errors`.
"""

from . import newton, sweeps  # the solvers register themselves
from .max_balance.solver import MaxBalance
from .registry import SOLVER_NAMES, SolverName, fastest_solver, get_solver, register_solver, solver_names

__all__ = [
    "SOLVER_NAMES",
    "MaxBalance",
    "SolverName",
    "fastest_solver",
    "get_solver",
    "newton",
    "register_solver",
    "solver_names",
    "sweeps",
]

"""From channel sums to log-scales: pure functions of small tensors."""

from . import newton, sweeps  # the solvers register themselves
from .objective import get_solver, register_solver, solver_names

__all__ = ["get_solver", "newton", "register_solver", "solver_names", "sweeps"]

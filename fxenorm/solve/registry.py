"""The table of solvers: the names that users choose from, how each is made, and its needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import OptionError
from .objective import Cycle

__all__ = ["SOLVER_NAMES", "Solver", "SolverName", "fastest_solver", "get_solver", "register_solver", "solver_names"]

SolverName = Literal["jacobi", "gauss-seidel", "newton"]
"""The solvers that `analyze(solver=...)` offers beside "auto"."""

SOLVER_NAMES: tuple[SolverName, ...] = get_args(SolverName)


@dataclass(frozen=True)
class Solver:
    """One entry of the table.

    Attributes:
        make: returns a fresh cycle, which serves one solution.
        derivatives: whether its cycles need first and second derivatives of the objective, which p = inf does not have.
        largest: whether its cycles look at the largest entries alone, which decide for p = inf and for no other.
    """

    make: Callable[[], Cycle]
    derivatives: bool = False
    largest: bool = False

    def serves(self, p: float) -> bool:
        """Whether it can minimise a norm of this exponent."""
        return not (self.largest if math.isfinite(p) else self.derivatives)


_SOLVERS: dict[str, Solver] = {}


def register_solver(name: str, solver: Solver, *, replace: bool = False) -> None:
    """Adds a solver to the table; called while its module is imported.

    Args:
        name: the name that `get_solver` finds it by.
        solver: how it is made, and its needs.
        replace: whether a solver that has the name already gives way.

    Raises:
        OptionError: the name is taken and `replace` is False.
    """
    if name in _SOLVERS and not replace:
        raise OptionError(f"there is a solver {name!r} already")
    _SOLVERS[name] = solver


def solver_names(p: float = 2.0) -> tuple[str, ...]:
    """Returns the names of all registered solvers that can minimise a norm of exponent `p`, in alphabetical order."""
    return tuple(sorted(name for name, solver in _SOLVERS.items() if solver.serves(p)))


def fastest_solver(p: float) -> str:
    """Returns the solver that needs the fewest iterations: Newton's method where the objective has derivatives."""
    return "newton" if "newton" in solver_names(p) else "max-balance"


def get_solver(name: str) -> Cycle:
    """Returns a fresh cycle of the solver of that name.

    Raises:
        OptionError: no solver has that name.
    """
    if name not in _SOLVERS:
        raise OptionError(f"solver={name!r} is not a valid option: expected one of {solver_names()}")
    return _SOLVERS[name].make()

"""The coarse problem: one scalar a group, added to the log-scales of all its variables, solved exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .dense_coarse import CoarseProblem
from .objective import Objective
from .sparse_coarse import SparseCoarseProblem

__all__ = ["CoarseProblem", "coarse_correction", "coarse_labels", "coarse_problem", "solver_of_sums"]

_MOST_DENSE = 256
"""Groups up to which the matrix is dense, half a MB in float64: a Cholesky factor of that size takes 1.6 ms on one CPU core.
The time grows with the cube of the number."""


def coarse_problem(objective: Objective, log_scales: Tensor, labels: Tensor, count: int) -> CoarseProblem | None:
    """Returns the objective as a function of one scalar a label; None where no label or no entry is left."""
    if not count:
        return None
    logs, exponents = objective.aggregate(log_scales, labels, count)
    if not logs.numel():
        return None
    return (CoarseProblem if count <= _MOST_DENSE else SparseCoarseProblem)(logs, exponents, count, objective.p)


def solver_of_sums(sums: Sequence[tuple[Tensor, Tensor]], count: int, log_unit: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Returns a solver for the second derivative of some sums together; None where no label or no entry is left.

    Args:
        sums: logs of their entries' second derivatives by an exponent of 1, and exponents, as `Objective.aggregate` returns them.
        count: number of labels.
        log_unit: the solver works in units of exp(log_unit).
    """
    logs = torch.cat([found for found, _ in sums]) if sums else log_unit.new_zeros(0)
    if not count or not logs.numel():
        return None
    shifts = [0]
    for found, _ in sums:
        shifts.append(shifts[-1] + found.numel())
    exponents = torch.cat([torch.cat([own[:1] + shift, own[1:]]) for (_, own), shift in zip(sums, shifts[:-1], strict=True)], 1)
    return (CoarseProblem if count <= _MOST_DENSE else SparseCoarseProblem)(logs, exponents, count, 1.0).preconditioner(log_unit)


def coarse_labels(objective: Objective, free: Tensor) -> tuple[Tensor, int]:
    """(K,) group numbers without gaps and their count G; variables that do not move get G."""
    used, labels = torch.unique(objective.labels[free], return_inverse=True)
    full = torch.full_like(objective.labels, used.numel())
    full[free] = labels
    return full, used.numel()


def coarse_correction(objective: Objective, log_scales: Tensor, free: Tensor) -> Tensor:
    """(K,) the log-scales after the exact solution for one scalar a group.

    On a chain every layer's total becomes the geometric mean of all: the slow part of coordinate descent, done at once.
    """
    up, down = objective.limit.unbind() if objective.limit.ndim == 2 else (objective.limit, objective.limit)
    labels, count = coarse_labels(objective, free & (log_scales < up) & (log_scales > -down))
    problem = coarse_problem(objective, log_scales, labels, count)
    if problem is None:
        return log_scales
    scalars = problem.minimise()
    change = torch.nn.functional.pad(scalars, (0, 1))[labels]
    # The whole correction is shortened where one variable would pass its limit, so that the objective still cannot rise.
    room = torch.where(change > 0, up - log_scales, down + log_scales)
    share = torch.where(change != 0, room / change.abs(), torch.inf).amin().clamp(max=1.0)
    return log_scales + share * change

"""The coarse problem: one scalar a group, added to the log-scales of all its variables, solved exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .objective import Objective
from .sparse_coarse import SparseCoarseProblem

__all__ = ["CoarseProblem", "coarse_correction", "coarse_labels", "coarse_problem"]

_MOST_DENSE = 256
"""Groups up to which a dense matrix is the faster one."""

_ITERATIONS, _TOLERANCE = 50, 1e-10


class CoarseProblem:
    """F(y) = the sum over entries of m_e exp(p b_e . y), with few scalars y: a geometric program held as a dense matrix.

    Args:
        logs: (E,) log m_e.
        exponents: (3, n) entry, label and exponent; equal positions add up.
        count: number of scalars G.
        p: the norm's exponent, finite.
    """

    def __init__(self, logs: Tensor, exponents: Tensor, count: int, p: float) -> None:
        self.logs, self.p = logs, p
        entry, label, exponent = exponents
        rows = logs.new_zeros(logs.numel(), count)
        self.rows = rows.index_put_((entry, label), exponent.to(logs), accumulate=True)

    def preconditioner(self, log_scale: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The solution of the Hessian at y = 0 over p^2, in units of exp(log_scale); None where it has no factors."""
        hessian = self.rows.T @ ((self.logs - log_scale).clamp(max=600.0).exp()[:, None] * self.rows)
        diagonal = hessian.diagonal()
        root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        ridge = 1e-10 * torch.eye(root.numel(), dtype=root.dtype, device=root.device)
        factor, trouble = torch.linalg.cholesky_ex(root[:, None] * hessian * root[None, :] + ridge)
        if bool(trouble):
            return None
        return lambda vector: torch.cholesky_solve((root * vector)[:, None], factor)[:, 0] * root

    def minimise(self) -> Tensor:
        """(G,) the minimum, by Newton's method on log F with a line search."""
        current = self.rows.new_zeros(self.rows.shape[1])
        value = self.logs.logsumexp(0)
        for _ in range(_ITERATIONS):
            terms = (self.logs + self.p * (self.rows @ current) - value).exp()
            gradient = self.p * (self.rows.T @ terms)
            size = self.rows.abs().T @ terms
            if not bool((gradient.abs() > _TOLERANCE * self.p * size).any()):
                break
            hessian = self.p**2 * (self.rows.T @ (terms[:, None] * self.rows))
            direction = -solve_positive(hessian, gradient)
            # A step that multiplies an entry by more than e^4 is beyond what the quadratic model knows.
            direction *= (4.0 / (self.p * direction.abs().amax() + 1e-300)).clamp(max=1.0)
            length, slope = 1.0, float(gradient @ direction)
            while length > 1e-4:
                ahead = current + length * direction
                now = (self.logs + self.p * (self.rows @ ahead)).logsumexp(0)
                if bool(now <= value + 1e-4 * length * slope + 1e-14):
                    current, value = ahead, now
                    break
                length /= 2
            else:
                break
        return current


def solve_positive(matrix: Tensor, vector: Tensor) -> Tensor:
    """The solution of a symmetric positive semidefinite system; rows of zeros give 0."""
    diagonal = matrix.diagonal()
    root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = root[:, None] * matrix * root[None, :]
    # Groups that only move together leave a direction free; the ridge keeps it where it is.
    factor, _ = torch.linalg.cholesky_ex(scaled + 1e-12 * torch.eye(diagonal.numel(), dtype=matrix.dtype, device=matrix.device))
    broken = (diagonal <= 0) | ~factor.isfinite().all()
    solution = torch.cholesky_solve((root * vector)[:, None], factor)[:, 0] * root
    return torch.where(broken, 0.0, solution)


def coarse_problem(
    objective: Objective, log_scales: Tensor, labels: Tensor, count: int
) -> CoarseProblem | SparseCoarseProblem | None:
    """The objective at some log-scales as a function of one scalar a label; None where no label or no entry is left."""
    if not count:
        return None
    logs, exponents = objective.aggregate(log_scales, labels, count)
    if not logs.numel():
        return None
    return (CoarseProblem if count <= _MOST_DENSE else SparseCoarseProblem)(logs, exponents, count, objective.p)


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

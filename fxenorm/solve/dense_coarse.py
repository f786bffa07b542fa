"""The coarse problem as a geometric program in few scalars, solved by Newton's method; its matrix is dense here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CoarseProblem"]

_ITERATIONS, _TOLERANCE = 50, 1e-10
"""Newton steps at most, each shortened until it lowers the objective: near the minimum a few double the digits each, and a
start far away needs one for every factor of e^4. The gradient relative to the terms that it is the difference of: below,
rounding rules."""


class CoarseProblem:
    """F(y) = the sum over entries of m_e exp(p b_e . y), with few scalars y. Four methods hold and multiply the b_e.

    Args:
        logs: (E,) log m_e.
        exponents: (3, n) entry, label and exponent; equal positions add up.
        count: number of scalars G.
        p: the norm's exponent, finite.
    """

    def __init__(self, logs: Tensor, exponents: Tensor, count: int, p: float) -> None:
        self.logs, self.count, self.p = logs, count, p
        self._hold(exponents)

    def preconditioner(self, log_scale: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Returns a solver for the Hessian at y = 0 over p^2, in units of exp(log_scale); None where it has no factors."""
        return self._solver((self.logs - log_scale).clamp(max=600.0).exp(), 1e-10)

    def minimise(self) -> Tensor:
        """Returns (G,) the minimum, by Newton's method on log F with a line search; zeros where the Hessian has no factors."""
        current = self.logs.new_zeros(self.count)
        value = self.logs.logsumexp(0)
        for _ in range(_ITERATIONS):
            terms = (self.logs + self.p * self._along(current) - value).exp()
            gradient = self.p * self._across(terms)
            if not bool((gradient.abs() > _TOLERANCE * self.p * self._across(terms, sizes=True)).any()):
                break
            solve = self._solver(terms, 1e-12)
            if solve is None:
                break
            direction = -solve(gradient) / self.p**2
            # A step that multiplies an entry by more than e^4 is beyond the reach of the quadratic model.
            direction *= (4.0 / (self.p * direction.abs().amax() + 1e-300)).clamp(max=1.0)
            length, slope = 1.0, float(gradient @ direction)
            while length > 1e-4:
                ahead = current + length * direction
                now = (self.logs + self.p * self._along(ahead)).logsumexp(0)
                if bool(now <= value + 1e-4 * length * slope + 1e-14):
                    current, value = ahead, now
                    break
                length /= 2
            else:
                break
        return current

    def _hold(self, exponents: Tensor) -> None:
        """Keeps the exponents b_e as a dense (E, G) matrix."""
        entry, label, exponent = exponents
        rows = self.logs.new_zeros(self.logs.numel(), self.count)
        self._rows = rows.index_put_((entry, label), exponent.to(self.logs), accumulate=True)

    def _along(self, scalars: Tensor) -> Tensor:
        """Returns (E,) b_e . y, the log-scale of every entry."""
        return self._rows @ scalars

    def _across(self, weights: Tensor, *, sizes: bool = False) -> Tensor:
        """(G,) the sum over entries of weight times b_e, or times |b_e|."""
        return (self._rows.abs() if sizes else self._rows).T @ weights

    def _solver(self, weights: Tensor, ridge: float) -> Callable[[Tensor], Tensor] | None:
        """Returns a solver with the sum over entries of weight times b_e b_e^T; rows of zeros give 0. None: no factors.

        Groups that only move together leave a direction free; the ridge, relative to the diagonal, keeps it where it is.
        """
        matrix = self._rows.T @ (weights[:, None] * self._rows)
        diagonal = matrix.diagonal()
        root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        eye = torch.eye(self.count, dtype=matrix.dtype, device=matrix.device)
        factor, trouble = torch.linalg.cholesky_ex(root[:, None] * matrix * root[None, :] + ridge * eye)
        if bool(trouble):
            return None

        def solve(vector: Tensor) -> Tensor:
            """Returns (G,) the solution for one right-hand side."""
            solution = torch.cholesky_solve((root * vector)[:, None], factor)[:, 0] * root
            return torch.where(diagonal > 0, solution, 0.0)

        return solve

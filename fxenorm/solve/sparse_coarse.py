"""The coarse problem of many groups, of which each meets few others: held and factorised as a sparse matrix, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["SparseCoarseProblem"]

_Vector = npt.NDArray[np.float64]

_ITERATIONS, _TOLERANCE = 50, 1e-10
_MOST_NEIGHBOURS = 64
"""Groups that a group meets on average: with more of them the factors would fill up."""


class SparseCoarseProblem:
    """`CoarseProblem` for many scalars; the same arguments."""

    def __init__(self, logs: Tensor, exponents: Tensor, count: int, p: float) -> None:
        from scipy.sparse import coo_array  # slow to import, and only for deep models

        self._like, self.p = logs, p
        self.logs: _Vector = logs.cpu().double().numpy()
        entry, label, exponent = exponents.cpu().numpy()
        self.rows: Any = coo_array((exponent.astype(np.float64), (entry, label)), shape=(logs.numel(), count)).tocsr()

    def preconditioner(self, log_scale: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The solution of the Hessian at y = 0 over p^2, in units of exp(log_scale); None where it has too many entries."""
        solve = _solver(self._gram(np.exp(np.minimum(self.logs - float(log_scale), 600.0))), 1e-10)
        if solve is None:
            return None
        return lambda vector: torch.from_numpy(solve(vector.cpu().double().numpy())).to(vector)

    def minimise(self) -> Tensor:
        """(G,) the minimum, by Newton's method on log F with a line search; zeros where the Hessian has too many entries."""
        current = np.zeros(self.rows.shape[1], dtype=np.float64)
        value = _log_sum(self.logs)
        for _ in range(_ITERATIONS):
            terms = np.exp(self.logs + self.p * (self.rows @ current) - value)
            gradient = self.p * (self.rows.T @ terms)
            size = abs(self.rows).T @ terms
            if not (np.abs(gradient) > _TOLERANCE * self.p * size).any():
                break
            solve = _solver(self.p**2 * self._gram(terms), 1e-12)
            if solve is None:
                break
            direction = -solve(gradient)
            # A step that multiplies an entry by more than e^4 is beyond what the quadratic model knows.
            direction *= min(1.0, 4.0 / (self.p * float(np.abs(direction).max()) + 1e-300))
            length, slope = 1.0, float(gradient @ direction)
            while length > 1e-4:
                ahead = current + length * direction
                now = _log_sum(self.logs + self.p * (self.rows @ ahead))
                if now <= value + 1e-4 * length * slope + 1e-14:
                    current, value = ahead, now
                    break
                length /= 2
            else:
                break
        return torch.from_numpy(current).to(self._like)

    def _gram(self, weights: _Vector) -> Any:
        """The sum over entries of weight times the outer product of its exponents."""
        from scipy.sparse import csc_array, diags_array

        return csc_array(self.rows.T @ (diags_array(weights) @ self.rows))


def _solver(matrix: Any, ridge: float) -> Callable[[_Vector], _Vector] | None:
    """Solves a symmetric positive semidefinite system; rows of zeros give 0. None where it has too many entries or no factors."""
    from scipy.sparse import csc_array, diags_array, eye_array
    from scipy.sparse.linalg import splu

    count = matrix.shape[0]
    if matrix.nnz > _MOST_NEIGHBOURS * count:
        return None
    diagonal = matrix.diagonal()
    root = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scale = diags_array(root)
    # Groups that only move together leave a direction free; the ridge keeps it where it is.
    scaled = csc_array(scale @ matrix @ scale + ridge * eye_array(count))
    try:
        factor = splu(scaled, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except (RuntimeError, MemoryError):  # not positive in its digits, or filled up: the solver does without
        return None

    def solve(vector: _Vector) -> _Vector:
        """One right-hand side."""
        solution = factor.solve(root * vector) * root
        return np.where((diagonal <= 0) | ~np.isfinite(solution), 0.0, solution)

    return solve


def _log_sum(logs: _Vector) -> float:
    """The logarithm of a sum of exponentials."""
    largest = logs.max()
    return float(largest + np.log(np.exp(logs - largest).sum()))

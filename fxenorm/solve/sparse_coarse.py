"""The coarse problem of many groups, of which each meets few others: held and factorised as a sparse matrix, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dense_coarse import CoarseProblem
from .limits import numbers

__all__ = ["SparseCoarseProblem", "factorised"]

_MOST_NEIGHBOURS = 64
"""Groups that a group meets on average. Chains and residual streams meet a few; with more, factors fill up towards a dense
matrix, whose cost grows with the cube of the number of groups."""


class SparseCoarseProblem(CoarseProblem):
    """`CoarseProblem` for many scalars; without factors also where its Hessian has too many entries."""

    def _hold(self, exponents: Tensor) -> None:
        """Keeps the exponents b_e as a sparse (E, G) matrix."""
        from scipy.sparse import coo_array  # slow to import, and only for deep models

        entry, label, exponent = exponents.cpu().numpy()
        self._sparse: Any = coo_array(
            (exponent.astype(np.float64), (entry, label)), shape=(self.logs.numel(), self.count)
        ).tocsr()

    def _along(self, scalars: Tensor) -> Tensor:
        """Returns (E,) b_e . y, the log-scale of every entry."""
        return torch.from_numpy(self._sparse @ numbers(scalars)).to(scalars)

    def _across(self, weights: Tensor, *, sizes: bool = False) -> Tensor:
        """(G,) the sum over entries of weight times b_e, or times |b_e|."""
        return torch.from_numpy((abs(self._sparse) if sizes else self._sparse).T @ numbers(weights)).to(weights)

    def _solver(self, weights: Tensor, ridge: float) -> Callable[[Tensor], Tensor] | None:
        """Returns a solver by sparse LU factors, None where they would fill up; see `CoarseProblem`."""
        from scipy.sparse import csc_array

        matrix = self._sparse.T @ (_diagonal(numbers(weights)) @ self._sparse)
        if matrix.nnz > _MOST_NEIGHBOURS * self.count:
            return None
        diagonal = matrix.diagonal()
        root = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        scaled = csc_array(_diagonal(root) @ matrix @ _diagonal(root) + _diagonal(np.full(self.count, ridge)))
        try:
            factor = factorised(scaled)
        except (RuntimeError, MemoryError):  # not positive in its digits, or filled up: the solver does without
            return None

        def solve(vector: Tensor) -> Tensor:
            """Returns (G,) the solution for one right-hand side."""
            solution = factor.solve(root * numbers(vector)) * root
            return torch.from_numpy(np.where((diagonal > 0) & np.isfinite(solution), solution, 0.0)).to(vector)

        return solve


def factorised(matrix: Any) -> Any:
    """Returns sparse LU factors of a symmetric positive matrix, sparse by columns: without pivots, which would fill up."""
    from scipy.sparse.linalg import splu

    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def _diagonal(entries: Any) -> Any:
    """Returns (n, n) a sparse matrix with these entries on its diagonal; scipy's own function came with 1.12."""
    from scipy.sparse import csr_array

    places = np.arange(len(entries))
    return csr_array((entries, (places, places)), shape=(len(entries), len(entries)))

"""An integer basis of the variables that may move where tensors or channels are held, and exponents in that basis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...field import Equations, Ids, ScaleField, Term, merge_entries, solve
from ...symmetry.express import Expander

__all__ = ["Basis", "Equation", "Form", "basis_of", "combined"]

Form = tuple[tuple[int, int], ...]
"""(variable, coefficient) pairs of a linear form of the scale variables, by ascending variable."""


@dataclass(frozen=True)
class Equation:
    """A linear form of the plan's variables that stays at 0.

    Attributes:
        form: which.
        reason: why.
        tensors: names of the tensors that make it so.
    """

    form: Form
    reason: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Basis:
    """An integer basis of a subspace of the variables, each of its vectors standing in the place of one variable.

    Attributes:
        matrix: (K, K) sparse int64, column k the vector in place k; empty columns where there is none.
    """

    matrix: Any

    @cached_property
    def unused(self) -> NDArray[np.bool_]:
        """(K,) the places without a vector."""
        return np.asarray(np.bincount(self.matrix.indices, minlength=self.matrix.shape[1]) == 0)

    @cached_property
    def mixes(self) -> bool:
        """Whether any of its vectors is something else than one variable."""
        places = np.repeat(np.arange(self.matrix.shape[0]), np.diff(self.matrix.indptr))
        return not (np.array_equal(places, self.matrix.indices) and bool((self.matrix.data == 1).all()))

    @cached_property
    def growth(self) -> float:
        """The largest sum of |coefficients| by which a variable follows the basis; at least 1."""
        return float(max(1, abs(self.matrix).sum(axis=1).max(initial=1)))

    @cached_property
    def _expander(self) -> Expander:
        """Takes exponents from variables to places."""
        return Expander(self.matrix.copy())

    def terms(self, terms: Iterable[Term]) -> tuple[Term, ...]:
        """Returns exponents in the basis; () where everything cancels."""
        return merge_entries(self._expander.terms(terms))

    def to_plan(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) log-scales of the plan's variables, from those of the basis."""
        coo = self.matrix.tocoo()
        rows, columns = (torch.from_numpy(array.astype(np.int64)).to(log_scales.device) for array in (coo.row, coo.col))
        parts = log_scales[columns] * torch.from_numpy(coo.data).to(log_scales)
        return torch.zeros_like(log_scales).index_add_(0, rows, parts)

    def derivative(self, gradient: Tensor) -> Tensor:
        """Returns (K,) the derivative by the places, from that by the plan's variables."""
        coo = self.matrix.tocoo()
        rows, columns = (torch.from_numpy(array.astype(np.int64)).to(gradient.device) for array in (coo.row, coo.col))
        parts = gradient[rows] * torch.from_numpy(coo.data).to(gradient)
        return torch.zeros_like(gradient).index_add_(0, columns, parts)

    def after(self, other: Basis) -> Basis:
        """Returns the vectors of this basis that another basis, over its places, spans."""
        from scipy.sparse import csr_array

        return Basis(csr_array(self.matrix @ other.matrix))


def basis_of(
    count: int,
    zero: Iterable[tuple[tuple[int, ...], Sequence[Term]]],
    equations: Iterable[Form],
    fixed: Ids | None = None,
) -> Basis:
    """Returns a basis of the variables for which some fields and some forms are zero.

    Args:
        count: number of variables K.
        zero: fields that must vanish everywhere, as (shape, terms).
        equations: forms that must vanish.
        fixed: variables that must.
    """
    system = Equations(count)
    if fixed is not None:
        system.zeros.append((fixed.astype(np.int64), 0))
    for shape, terms in zero:
        # The last axes first, as an input's term may vary along axis 0 too (grouped).
        rest = system.require_constant(ScaleField(shape, tuple(terms)), range(len(shape))[::-1], 0)
        system.require_zero(rest, 0)
    for form in equations:
        one = ScaleField((1,), tuple((coefficient, np.array([variable], dtype=np.int64)) for variable, coefficient in form))
        system.require_zero(one, 0)
    return Basis(_placed(solve(system).matrix))


def combined(form: Form, basis: Basis) -> Form:
    """Returns a form of the variables, in the places of a basis."""
    totals: dict[int, int] = {}
    for variable, coefficient in form:
        row = slice(basis.matrix.indptr[variable], basis.matrix.indptr[variable + 1])
        for place, value in zip(basis.matrix.indices[row].tolist(), basis.matrix.data[row].tolist(), strict=True):
            totals[place] = totals.get(place, 0) + coefficient * value
    return tuple((place, value) for place, value in sorted(totals.items()) if value)


def _placed(matrix: Any) -> Any:
    """Places the columns of a (K, free) basis in (K, K): each at the first variable that it alone moves, else at any."""
    from scipy.sparse import csr_array

    count, free = matrix.shape
    coo = matrix.tocoo()
    alone = (np.diff(matrix.indptr) == 1)[coo.row]
    order = np.lexsort((coo.row, ~alone, coo.col))
    place = np.full(free, -1, dtype=np.int64)
    taken = np.zeros(count, dtype=bool)
    left = []
    begins = np.searchsorted(coo.col[order], np.arange(free + 1))
    first_alone = alone[order][begins[:-1]] if free else np.zeros(0, dtype=bool)
    place[first_alone] = coo.row[order][begins[:-1]][first_alone]
    taken[place[first_alone]] = True
    for column in np.flatnonzero(~first_alone).tolist():
        rows = coo.row[order][begins[column] : begins[column + 1]]
        own = rows[~taken[rows]]
        if own.size:
            place[column] = own[0]
            taken[own[0]] = True
        else:
            left.append(column)
    place[left] = np.flatnonzero(~taken)[: len(left)]
    placed: Ids = place[coo.col]
    values = coo.data.astype(np.int64)
    sign = np.ones(count, dtype=np.int64)
    own = placed == coo.row
    sign[placed[own]] = np.sign(values[own])
    found = csr_array((values * sign[placed], (coo.row, placed)), shape=(count, count))
    found.sort_indices()
    return found

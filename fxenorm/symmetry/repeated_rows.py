"""Fields whose rows repeat, as those of one group of a convolution do, with each such row written once.

An array of ids of a grouped convolution has one row an output channel, and all rows of a group are equal. A question about
variables by themselves needs each of them once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..field import Equations, Ids, ScaleField, Term, merge_entries, simplify

__all__ = ["RepeatedRows", "ShortField", "ShortFields", "first_rows"]

LARGE = 10_000
"""Arrays with fewer ids than this are not searched for repeated rows: to write out 10,000 ids takes well under a millisecond."""


class _Rewriter(Protocol):
    """Writes the terms of a field in other variables."""

    def terms(self, terms: Sequence[Term], /) -> tuple[Term, ...]: ...


def first_rows(ids: Ids) -> Any:
    """Returns (rows,) bool: the rows that do not repeat the one before, as those of a group do; None for small arrays."""
    if ids.ndim < 2 or ids.size < LARGE:
        return None
    return np.append(True, (ids[1:] != ids[:-1]).any(axis=tuple(range(1, ids.ndim))))


@dataclass(frozen=True, eq=False)
class RepeatedRows:
    """The rows along axis 0 that do not repeat the one before: at least two, and at most half of all.

    Attributes:
        kept: (blocks,) the first row of each block of equal ones.
        place: (rows,) by row, its block.
    """

    kept: Ids
    place: Ids

    @staticmethod
    def of(arrays: Sequence[Ids]) -> RepeatedRows | None:
        """Finds them in arrays with one number of rows; None where an array is small or most rows differ."""
        found = [first for first in map(first_rows, arrays) if first is not None]
        if not found or len(found) < len(arrays):
            return None
        first = np.logical_or.reduce(found)
        kept = np.flatnonzero(first)
        return RepeatedRows(kept, np.cumsum(first) - 1) if 1 < len(kept) <= len(first) // 2 else None

    def are_of(self, ids: Ids) -> bool:
        """Returns whether the array has one row a block."""
        return ids.shape[:1] == self.kept.shape


@dataclass(frozen=True, eq=False)
class ShortField:
    """The field of a parameter; arrays that vary along axis 0 and another have one row a block of `rows`, if there are such.

    Attributes:
        shape: of the parameter.
        terms: as in a `ScaleField`, but for those arrays.
        rows: which rows repeat; None where all are written out.
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    rows: RepeatedRows | None = None

    @staticmethod
    def of(field: ScaleField) -> ShortField:
        """Writes each repeated row of a field once."""
        rows = RepeatedRows.of([ids for _, ids in field.terms if _is_matrix(ids)])
        if rows is None:
            return ShortField(field.shape, field.terms)
        kept = rows.kept
        return ShortField(field.shape, tuple((c, ids[kept] if _is_matrix(ids) else ids) for c, ids in field.terms), rows)

    def over(self, variables: _Rewriter) -> ShortField:
        """Writes the field in other variables."""
        return self._with(variables.terms(self.terms))

    def merged(self) -> ShortField:
        """Puts the terms together entry by entry (see `merge_entries`)."""
        terms = merge_entries(self.terms)
        if self.rows is not None and any(self.rows.are_of(ids) and not _is_matrix(ids) for _, ids in terms):
            return ShortField(self.shape, merge_entries(self.whole()))
        return ShortField(self.shape, terms, self.rows)

    def whole(self) -> tuple[Term, ...]:
        """Returns the terms with all rows written out."""
        rows = self.rows
        return self.terms if rows is None else tuple((c, ids[rows.place] if rows.are_of(ids) else ids) for c, ids in self.terms)

    def require_zero(self, equations: Equations) -> None:
        """Requires that no entry of the parameter moves."""
        short = self
        # The last axes first: an input term that also varies along axis 0 (grouped) is reduced before it meets the output's.
        axes = {axis for _, ids in self.terms for axis, size in enumerate(ids.shape) if size > 1}
        for axis in sorted(axes, reverse=True):
            short = short._with(equations.require_constant(ScaleField(self.shape, short.terms), [axis], 0).terms)
        equations.require_zero(ScaleField(self.shape, short.terms), 0)

    def _with(self, terms: tuple[Term, ...]) -> ShortField:
        """Takes other terms; those that now vary along axis 0 alone are written out, so that they meet others of their kind."""
        rows = self.rows
        if rows is not None and any(rows.are_of(ids) and not _is_matrix(ids) for _, ids in terms):
            wide = ((c, ids[rows.place] if rows.are_of(ids) and not _is_matrix(ids) else ids) for c, ids in terms)
            terms = simplify(wide)
        return ShortField(self.shape, terms, rows)


class ShortFields:
    """The short forms of the fields of a model's parameters, each made once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ScaleField, ShortField]] = {}

    def of(self, fields: Mapping[str, ScaleField]) -> dict[str, ShortField]:
        """Returns the short form of each field, by name."""
        for name, field in fields.items():
            if name not in self._known or self._known[name][0] is not field:
                self._known[name] = (field, ShortField.of(field))
        return {name: self._known[name][1] for name in fields}


def _is_matrix(ids: Ids) -> bool:
    """Returns whether the array varies along axis 0 and another."""
    return ids.ndim > 1 and ids.shape[0] > 1 and ids.size > ids.shape[0]

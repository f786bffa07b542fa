"""The equations that a model imposes on its scale variables, collected while its graph is walked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .scale_field import FIXED, Ids, ScaleField, Term, align, invert, simplify

__all__ = ["Equations"]


_LARGE = 10_000
"""Ids in arrays with more entries than this are searched for repetitions: to sort 10,000 takes a millisecond, and the solver
would need little more for as many equations."""


@dataclass
class Equations:
    """Homogeneous linear equations with integer coefficients, each with the position (origin) of the node that imposed it.

    Three lists, from the cheap to the general: ties (a = b), zeros (a = 0) and sums (c1 a1 + c2 a2 + ... = 0).

    Example:
        >>> equations = Equations()
        >>> a, b = equations.fresh((4,)), equations.fresh((4,))
        >>> equations.require_equal(a, b, origin=7)
        >>> equations.count, len(equations.ties)
        (8, 1)
    """

    count: int = 0
    ties: list[tuple[Ids, Ids, int]] = field(default_factory=list)
    zeros: list[tuple[Ids, int]] = field(default_factory=list)
    sums: list[tuple[tuple[int, ...], Ids, int]] = field(default_factory=list)
    """(coefficients, ids of shape (number of terms, number of equations), origin)."""

    def fresh(self, shape: Sequence[int], varying: Sequence[int] | None = None) -> ScaleField:
        """Returns a field of new variables over `shape`, one for each position on the `varying` axes (default: all)."""
        axes = range(len(shape)) if varying is None else varying
        sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
        number = math.prod(sizes)
        ids = np.arange(self.count, self.count + number, dtype=np.int64).reshape(sizes)
        self.count += number
        return ScaleField(tuple(shape), ((1, ids),) if number else ())

    def require_zero(self, fields: ScaleField, origin: int) -> None:
        """Requires that the tensor is left as it is: its field is 0."""
        terms = fields.terms
        if not terms:
            return
        parts = _independent(terms)
        if len(parts) > 1:
            # Terms on different axes: each part is constant, and the constants cancel. Never one equation an entry.
            shape = fields.shape
            rest = [t for part in parts for t in self.require_constant(ScaleField(shape, part), range(len(shape)), origin).terms]
            terms = simplify(rest)
            if not terms:
                return
        if len(terms) == 1:
            ids = terms[0][1].ravel()
            self.zeros.append((ids[ids != FIXED], origin))
        elif len(terms) == 2 and terms[0][0] == -terms[1][0]:
            self.ties.append((*_rows(terms), origin))
        else:
            rows = _rows(terms)
            rows = _distinct(rows)
            self.sums.append((tuple(c for c, _ in terms), rows, origin))

    def require_equal(self, a: ScaleField, b: ScaleField, origin: int) -> None:
        """Requires that both tensors (of one shape, or broadcast against each other) carry the same field."""
        shape = a.shape if len(a.shape) >= len(b.shape) else b.shape
        terms = simplify((*align(a, shape).terms, *invert(align(b, shape)).terms))
        self.require_zero(ScaleField(shape, terms), origin)

    def require_constant(self, fields: ScaleField, axes: Sequence[int], origin: int) -> ScaleField:
        """Requires that the field does not change along `axes`; returns it, reduced to size-1 ids there."""
        for axis in axes:
            varying = [term for term in fields.terms if term[1].shape[axis] != 1]
            if not varying:
                continue
            first = [(c, ids.take([0], axis=axis)) for c, ids in varying]
            self.require_zero(ScaleField(fields.shape, simplify([*varying, *((-c, ids) for c, ids in first)])), origin)
            rest = [term for term in fields.terms if term[1].shape[axis] == 1]
            fields = ScaleField(fields.shape, simplify([*rest, *first]))
        return fields


def _independent(terms: tuple[Term, ...]) -> list[tuple[Term, ...]]:
    """Returns the terms in parts that share no varying axis; constant terms go with the first."""
    parts: list[tuple[set[int], list[Term]]] = []
    constant = []
    for term in terms:
        axes = {axis for axis, size in enumerate(term[1].shape) if size > 1}
        if not axes:
            constant.append(term)
            continue
        touching = [part for part in parts if part[0] & axes]
        for part in touching:
            parts.remove(part)
        parts.append((axes.union(*(part[0] for part in touching)), [t for part in touching for t in part[1]] + [term]))
    if len(parts) <= 1:
        return [terms]
    return [tuple(found) for _, found in parts[:-1]] + [(*parts[-1][1], *constant)]


def _rows(terms: Sequence[Term]) -> Ids:
    """Returns the ids of all terms broadcast against each other, (terms, entries), without entries that only repeat others."""
    arrays = [ids for _, ids in terms]
    for axis in range(arrays[0].ndim) if max(ids.size for ids in arrays) > _LARGE else ():
        varying = [ids for ids in arrays if ids.shape[axis] > 1]
        # Blocks of equal slices side by side (the outputs of one group of a grouped convolution) say the same.
        if varying and max(ids.size for ids in varying) > _LARGE:
            others = tuple(k for k in range(arrays[0].ndim) if k != axis)
            new = [(np.diff(ids, axis=axis) != 0).any(axis=others) for ids in varying]
            kept = np.flatnonzero(np.append(True, np.logical_or.reduce(new)))
            arrays = [ids.take(kept, axis=axis) if ids.shape[axis] > 1 else ids for ids in arrays]
    shape = [max(sizes) if min(sizes) else 0 for sizes in zip(*(ids.shape for ids in arrays), strict=True)]
    rows: Ids = np.empty((len(arrays), *shape), dtype=np.int64)
    for row, ids in enumerate(arrays):
        rows[row] = ids
    return rows.reshape(len(arrays), -1)


def _distinct(rows: Ids) -> Ids:
    """Returns the columns without repetition, in their order: so equations of layers that are alike are alike.

    A hash brings equal ones together; only truly equal neighbours are dropped.
    """
    if rows.shape[1] <= 1:
        return rows
    random: Ids = np.random.default_rng(0).integers(1, 2**62, size=(rows.shape[0], 1), dtype=np.int64)
    key = (rows * random).sum(axis=0)
    order = np.argsort(key, kind="stable")
    together = rows[:, order]
    different = np.append(True, (together[:, 1:] != together[:, :-1]).any(axis=0))
    return rows[:, np.sort(order[different])]

"""Scale fields: for each entry of a tensor, the linear form of the scale variables by which its logarithm moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIXED", "AnyField", "Ids", "ScaleField", "Term", "align", "compress", "invert", "product", "simplify", "times"]

FIXED = -1
"""The id that stands for "no variable": the number 0. As an index it names the last entry of a table, which is kept for it."""

Ids = NDArray[np.int64]
Term = tuple[int, Ids]
"""(integer coefficient, variable ids). The ids have the tensor's number of axes, and size 1 on every axis along which they
are constant; so a field that is constant everywhere stays one number, whatever the size of the tensor."""


@dataclass(frozen=True, eq=False)
class ScaleField:
    """The field of one tensor: entry e is multiplied by exp(sum over terms of coefficient * s[ids[e]]).

    No terms: the tensor is left as it is.

    Example:
        >>> import numpy as np
        >>> channels = ScaleField((2, 3, 8, 8), ((1, np.arange(3).reshape(1, 3, 1, 1)),))
        >>> channels.varies_along(1), channels.varies_along(2), channels.is_zero
        (True, False, False)
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...] = ()

    @property
    def is_zero(self) -> bool:
        """Whether the tensor is certainly left as it is (no equation needed)."""
        return not self.terms

    def varies_along(self, axis: int) -> bool:
        """Whether any term has different variables along `axis`."""
        return any(ids.shape[axis] != 1 for _, ids in self.terms)


@dataclass(frozen=True, eq=False)
class AnyField:
    """The field of a tensor whose entries are all 0 or infinite: multiplying them changes nothing, so it carries any field."""

    shape: tuple[int, ...]


def compress(ids: Ids, axes: Iterable[int] | None = None) -> Ids:
    """Reduces to size 1 every one of `axes` (default: all) along which `ids` is constant."""
    for axis in range(ids.ndim) if axes is None else axes:
        size = ids.shape[axis]
        # Nearly always the last place tells that they vary.
        if size > 1 and not (size == ids.size and ids.item(0) != ids.item(-1)):
            first = ids.take([0], axis=axis)
            if (ids.take([-1], axis=axis) == first).all() and (ids == first).all():
                ids = first
    return ids


def simplify(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Merges terms with the same ids, drop those that cancel or hold no variable."""
    kept: list[tuple[int, Ids]] = []
    for coefficient, ids in terms:
        if _all_fixed(ids):
            continue
        for position, (other_coefficient, other) in enumerate(kept):
            if other is ids or _equal(other, ids):
                kept[position] = (coefficient + other_coefficient, ids)
                break
        else:
            kept.append((coefficient, ids))
    return tuple([term for term in kept if term[0]])


def _equal(one: Ids, other: Ids) -> bool:
    """Returns whether the arrays are equal; mostly their first entry tells that they are not."""
    return one.shape == other.shape and (not one.size or one.item(0) == other.item(0)) and np.array_equal(one, other)


def _all_fixed(ids: Ids) -> bool:
    """Returns whether no entry is a variable; mostly the first or the last is one."""
    return not ids.size or (ids.item(0) == FIXED and ids.item(-1) == FIXED and (ids.size == 1 or bool((ids == FIXED).all())))


def align(field: ScaleField, shape: tuple[int, ...]) -> ScaleField:
    """Returns the field of the same tensor broadcast to `shape` (size-1 axes are added in front)."""
    missing = len(shape) - len(field.shape)
    if missing == 0:
        return field if field.shape == shape else ScaleField(shape, field.terms)
    return ScaleField(shape, tuple((c, ids.reshape((1,) * missing + ids.shape)) for c, ids in field.terms))


def product(shape: tuple[int, ...], *fields: ScaleField) -> ScaleField:
    """Returns the field of a product of tensors that broadcast to `shape`: log-scales add."""
    return ScaleField(shape, simplify(term for field in fields for term in align(field, shape).terms))


def times(field: ScaleField, factor: int) -> ScaleField:
    """Returns the field of a power: log-scales are multiplied by the integer `factor`."""
    return ScaleField(field.shape, tuple((factor * c, ids) for c, ids in field.terms) if factor else ())


def invert(field: ScaleField) -> ScaleField:
    """Returns the field of the reciprocal: all log-scales change sign."""
    return times(field, -1)

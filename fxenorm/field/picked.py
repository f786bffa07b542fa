"""Fields of tensors that show slices of another, where it depends on the data which slice each position shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .equations import Equations
from .parameter_view import ParameterFields, ParameterView, Step
from .scale_field import ScaleField
from .structure import reshape

__all__ = ["Picked", "axes_numbered", "numbered_positions", "pick"]


@dataclass(frozen=True, eq=False)
class Picked:
    """The field of a tensor that at position p shows slice index[p] of a stack of slices, index unknown.

    The field is kept by slice instead of by position: what is done to each position alone is done to each slice.

    Attributes:
        shape: the tensor's shape.
        axes: its axes that count positions, each longer than 1, the slowest first.
        index: names the index; two tensors of one index show the same slice at the same position.
        value: the field of the slices; of the tensor's shape, but with the number of slices on the first of `axes` and 1 on the
            others.
        origin: the call that made the tensor.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    index: tuple[str, int]
    value: ScaleField | ParameterView
    origin: int

    @property
    def count(self) -> int:
        """The number of slices in the stack."""
        return self.value.shape[self.axes[0]]

    def looked(self, parameters: ParameterFields) -> Picked:
        """Returns the same, with the field of its parameter where that got one meanwhile."""
        return replace(self, value=parameters.look(self.value)) if isinstance(self.value, ParameterView) else self

    def everywhere(self, equations: Equations) -> ScaleField | ParameterView:
        """Returns the field by position, which is known only if it is the same for all slices."""
        shape, narrow, axes, origin = self.shape, self.value.shape, self.axes, self.origin

        def forward(field: ScaleField) -> ScaleField:
            return ScaleField(shape, equations.require_constant(field, axes, origin).terms)

        def backward(wanted: ScaleField) -> ScaleField:
            return ScaleField(narrow, equations.require_constant(wanted, axes, origin).terms)

        if isinstance(self.value, ParameterView):
            return self.value.then(shape, Step(forward, backward))
        return forward(self.value)


def pick(
    value: ScaleField | ParameterView, axis: int, shape: tuple[int, ...], rank: int, index: tuple[str, int], origin: int
) -> Picked:
    """Returns the field of ``value[:, index]``: an index of `rank` axes, unknown, on one axis.

    Args:
        value: the field of the stack of slices.
        axis: along which slices are picked.
        shape: of the result.
        rank: the number of axes of the index; one of them at least is longer than 1.
        index: names the index.
        origin: of the call.

    Example:
        >>> stack = ScaleField((2, 3), ((1, np.array([[0], [1]])),))
        >>> found = pick(stack, 0, (5, 4, 3), 2, ("index", 0), 7)
        >>> found.axes, found.value.shape, found.count
        ((0, 1), (2, 1, 3), 2)
    """
    axes = tuple(k for k in range(axis, axis + rank) if shape[k] > 1)
    old, narrow = value.shape, narrowed(shape, axes, value.shape[axis])
    if isinstance(value, ParameterView):
        view = value.then(narrow, Step(lambda f: reshape(f, narrow), lambda f: reshape(f, old)))
        return Picked(shape, axes, index, view, origin)
    return Picked(shape, axes, index, reshape(value, narrow), origin)


def narrowed(shape: Sequence[int], axes: Sequence[int], count: int) -> tuple[int, ...]:
    """`shape` with `count` on the first of `axes` and 1 on the others."""
    return tuple(count if axes[:1] == (axis,) else 1 if axis in axes else size for axis, size in enumerate(shape))


def numbered_positions(shape: tuple[int, ...], axes: Sequence[int]) -> ScaleField:
    """Returns a field whose ids number the positions along `axes`, the first of them the slowest."""
    ids = np.arange(math.prod(shape[axis] for axis in axes), dtype=np.int64).reshape([shape[axis] for axis in axes])
    ordered = ids.transpose([int(k) for k in np.argsort(axes)])
    return ScaleField(shape, ((1, ordered.reshape([size if axis in axes else 1 for axis, size in enumerate(shape)])),))


def axes_numbered(value: Any, positions: int) -> tuple[int, ...] | None:
    """Returns the axes along which a field shows all of `numbered_positions` in order; None where it does not.

    Example:
        >>> axes_numbered(ScaleField((3, 2, 4), numbered_positions((3, 2, 4), (1, 0)).terms), 6)
        (1, 0)
    """
    if not isinstance(value, ScaleField) or len(value.terms) != 1:
        return None
    ids = value.terms[0][1]
    axes = [axis for axis, size in enumerate(ids.shape) if size > 1]
    if ids.size != positions or any(ids.shape[axis] != value.shape[axis] for axis in axes):
        return None
    small = ids.reshape([ids.shape[axis] for axis in axes])
    order = sorted(range(len(axes)), key=lambda k: -int(small.take(1, axis=k).flat[0]))
    if not np.array_equal(small.transpose(order).ravel(), np.arange(positions)):
        return None
    return tuple(axes[k] for k in order)

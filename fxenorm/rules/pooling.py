"""Windows of positions: pooling, interpolation. The field is constant within each window, in general along all positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..field import AnyField, Ids, ScaleField
from ..field.structure import select_positions
from .call import Call
from .registry import family, scale_rule

__all__ = ["within_windows"]


def within_windows(call: Call, field: ScaleField, axis: int, windows: Ids) -> ScaleField:
    """Ties the positions of each window of one axis; returns the field by window.

    Args:
        windows: (windows, places) positions along the axis, -1 for padding, which is 0 or -inf and carries any field.
    """
    first = windows.max(axis=1, initial=0)
    for places in windows.T:
        inside = np.flatnonzero((places >= 0) & (places != first))
        if len(inside) and field.varies_along(axis):
            call.equal(select_positions(field, axis, places[inside]), select_positions(field, axis, first[inside]))
    return select_positions(field, axis, first)


def _results(call: Call, field: ScaleField | AnyField) -> Any:
    """Returns the field as that of the first output; a second one holds positions."""
    outputs = call.output if isinstance(call.output, (tuple, list)) else [call.output]
    shape = tuple(outputs[0].shape)
    value = AnyField(shape) if isinstance(field, AnyField) else ScaleField(shape, field.terms)
    return (value, *(ScaleField(tuple(other.shape)) for other in outputs[1:])) if len(outputs) > 1 else value


def everywhere(call: Call, axes: int) -> Any:
    """Returns the field of entries that come from positions of the last `axes` axes: constant along these."""
    name = next(iter(call.arguments))
    if isinstance(call[name], AnyField):
        return _results(call, AnyField(()))
    rank = len(call.shape(name))
    return _results(call, call.constant(call.field(name), range(rank - axes, rank)))


def _by_axis(value: Any, axis: int, default: int) -> int:
    """Returns an argument that is given once for all axes, or one an axis, or not at all."""
    if value is None or value == []:
        return default
    return int(value if isinstance(value, int) else value[axis] if len(value) > 1 else value[0])


def _windowed(call: Call, axes: int, places: Callable[[int, int, int], Ids]) -> Any:
    """Returns the field of outputs that come from windows of positions of the last `axes` axes.

    Args:
        call: of the operator.
        axes: how many axes have windows.
        places: from the number of such an axis, its size and the number of windows, (windows, positions) places; -1: none.
    """
    if isinstance(call["self"], AnyField):
        return _results(call, AnyField(()))
    field = call.field("self")
    for k in range(axes):
        axis = len(field.shape) - axes + k
        field = within_windows(call, field, axis, places(k, field.shape[axis], call.out_shape[axis]))
    return _results(call, field)


def _pool(axes: int) -> Any:
    def pool(call: Call) -> Any:
        """Maxima and means over windows of positions; padding by zeros or -inf carries any field."""

        def places(k: int, size: int, count: int) -> Ids:
            """Returns the windows that lie at a stride, -1 for padding."""
            kernel = _by_axis(call["kernel_size"], k, 1)
            starts = np.arange(count) * _by_axis(call["stride"], k, kernel) - _by_axis(call["padding"], k, 0)
            found = starts[:, None] + np.arange(kernel) * _by_axis(call["dilation"], k, 1)
            return np.where((found >= 0) & (found < size), found, -1)

        return _windowed(call, axes, places)

    return pool


def _adaptive(axes: int) -> Any:
    def adaptive(call: Call) -> Any:
        """Maxima and means over windows i from floor(i n / m) to ceil((i + 1) n / m) of n positions."""

        def places(_: int, size: int, count: int) -> Ids:
            """Windows that share the positions out."""
            start, end = np.arange(count) * size // count, -(-(np.arange(count) + 1) * size // count)
            found = start[:, None] + np.arange((end - start).max(initial=1))
            return np.where(found < end[:, None], found, -1)

        return _windowed(call, axes, places)

    return adaptive


def _interpolated(axes: int) -> Any:
    def interpolated(call: Call) -> Any:
        """Weighted means of positions: constant along them."""
        return everywhere(call, axes)

    return interpolated


for _axes in (1, 2, 3):
    family(
        "reduction",
        _pool(_axes),
        [f"aten::max_pool{_axes}d", f"aten::max_pool{_axes}d_with_indices", f"aten::avg_pool{_axes}d"],
    )
    family("reduction", _adaptive(_axes), [f"aten::adaptive_avg_pool{_axes}d", f"aten::adaptive_max_pool{_axes}d"])
    family("reduction", _interpolated(_axes), [f"aten::upsample_nearest{_axes}d", f"aten::_upsample_nearest_exact{_axes}d"])


@scale_rule("aten::fractional_max_pool2d", "aten::fractional_max_pool3d", family="reduction")
def fractional(call: Call) -> Any:
    """Maxima over random windows of positions."""
    return everywhere(call, 3 if call.operator.endswith("3d") else 2)


@scale_rule(
    "aten::upsample_linear1d", "aten::upsample_bilinear2d", "aten::upsample_bicubic2d", "aten::upsample_trilinear3d",
    "aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa", "aten::grid_sampler", "aten::grid_sampler_2d",
    "aten::grid_sampler_3d",
    family="reduction",
)  # fmt: skip
def interpolate(call: Call) -> Any:
    """Weighted means of positions; a sampling grid is held."""
    if call["grid"] is not None:
        call.zero(call["grid"])
    return everywhere(call, len(call.out_shape) - 2)

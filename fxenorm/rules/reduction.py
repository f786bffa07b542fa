"""Reductions along named axes: the field is constant along them."""

from __future__ import annotations

from typing import Any

from ..field import AnyField, ScaleField, times
from .call import Call, Field, is_floating
from ..field.structure import reshape
from .laws import barrier, reduce, same_field, zero_field
from .registry import family, scale_rule

__all__ = ["reduced_axes"]


def reduced_axes(call: Call) -> list[int]:
    """The axes that the call reduces, all of them where none is named."""
    rank = len(call.shape("self"))
    axes = call["dim"]
    if axes is None or axes == []:
        return list(range(rank))
    return [axis % max(rank, 1) for axis in ([axes] if isinstance(axes, int) else axes)] if rank else []


def along_axes(call: Call) -> Any:
    """f(t x) = t f(x) for a t that is the same along the reduced axes."""
    if not is_floating(call.fakes["self"]):
        return zero_field(call)
    if 0 in (call["ord"], call["p"]):
        # The norm of order 0 counts entries: f(t x) = f(x).
        return zero_field(call)
    if call.operator == "aten::aminmax":
        value = reduce(call, call["self"], reduced_axes(call), tuple(call.output[0].shape))
        return (value, value)
    if isinstance(call.output, (tuple, list)):
        values = reduce(call, call["self"], reduced_axes(call), tuple(call.output[0].shape))
        return (values, ScaleField(tuple(call.output[1].shape)))
    return reduce(call, call["self"], reduced_axes(call), call.out_shape)


family(
    "reduction",
    along_axes,
    [
        "aten::mean", "aten::sum", "aten::nansum", "aten::nanmean", "aten::amax", "aten::amin", "aten::max.dim", "aten::min.dim",
        "aten::max.default", "aten::min.default", "aten::std", "aten::median.default", "aten::norm", "aten::linalg_vector_norm", "aten::frobenius_norm", "aten::aminmax",
        "aten::linalg_norm", "aten::linalg_matrix_norm", "aten::trace",
    ],
)  # fmt: skip


@scale_rule("aten::var", family="reduction")
def variance(call: Call) -> Field:
    """var(t x) = t^2 var(x)."""
    value = reduce(call, call["self"], reduced_axes(call), call.out_shape)
    return times(value, 2) if isinstance(value, ScaleField) else value


@scale_rule("aten::var_mean", "aten::std_mean", family="reduction")
def variance_and_mean(call: Call) -> Any:
    """(var or std, mean): degrees 2 (or 1) and 1."""
    spread, mean = (reduce(call, call["self"], reduced_axes(call), tuple(value.shape)) for value in call.output)
    doubled = call.operator == "aten::var_mean" and isinstance(spread, ScaleField)
    return (times(spread, 2) if doubled else spread, mean)  # type: ignore[arg-type]


@scale_rule("aten::cdist", "aten::pdist", "aten::dist", family="reduction")
def distance(call: Call) -> Any:
    """d(t x, t y) = t d(x, y) for one t over all points."""
    if call["p"] == 0:
        return barrier(call, "the distance of order 0 compares entries")
    values = []
    for _, value in call.tensors():
        rank = len(value.shape)
        axes = range(rank) if call.operator == "aten::dist" else range(rank - 2, rank)
        kept = value.shape[: 0 if call.operator == "aten::dist" else rank - 2]
        values.append(reduce(call, value, axes, kept))
    batch = call.out_shape[: max(0, len(call.out_shape) - 2)] if call.operator == "aten::cdist" else ()
    total = same_field(call, values, batch)
    if isinstance(total, AnyField):
        return AnyField(call.out_shape)
    wide = (*batch, *[1] * (len(call.out_shape) - len(batch)))
    return ScaleField(call.out_shape, reshape(total, wide).terms)  # type: ignore[arg-type]


@scale_rule("aten::renorm", "aten::cosine_similarity", "aten::pairwise_distance", family="reduction")
def held_distance(call: Call) -> Any:
    """Held: a small constant inside keeps them from being homogeneous."""
    return barrier(call, "a constant inside does not move with the scale")


def windows(call: Call, axes: int) -> Any:
    """Each entry comes from a window over the last `axes` axes: the field is constant along them."""
    name = next(iter(call.arguments))
    rank = len(call.shape(name))
    shapes = [tuple(value.shape) for value in call.output] if isinstance(call.output, (tuple, list)) else [call.out_shape]
    if isinstance(call[name], AnyField):
        return AnyField(shapes[0])
    field = call.constant(call.field(name), range(rank - axes, rank))
    value = ScaleField(shapes[0], field.terms)
    return (value, ScaleField(shapes[1])) if len(shapes) > 1 else value


def _pool(axes: int) -> Any:
    def pool(call: Call) -> Any:
        """Maxima and means over windows of positions; padding by zeros or -inf carries any field."""
        return windows(call, axes)

    return pool


for _axes in (1, 2, 3):
    family(
        "reduction",
        _pool(_axes),
        [
            f"aten::max_pool{_axes}d", f"aten::avg_pool{_axes}d", f"aten::adaptive_avg_pool{_axes}d", f"aten::adaptive_max_pool{_axes}d",
            f"aten::max_pool{_axes}d_with_indices", f"aten::upsample_nearest{_axes}d", f"aten::_upsample_nearest_exact{_axes}d",
        ],
    )  # fmt: skip


@scale_rule("aten::fractional_max_pool2d", "aten::fractional_max_pool3d", "aten::upsample_linear1d", family="reduction")
def fractional(call: Call) -> Any:
    """Maxima over random windows, or interpolation, of positions."""
    return windows(call, 3 if call.operator.endswith("3d") else 2 if call.operator.endswith("2d") else 1)


@scale_rule(
    "aten::upsample_bilinear2d", "aten::upsample_bicubic2d", "aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa",
    "aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d",
    family="reduction",
)  # fmt: skip
def interpolate(call: Call) -> Any:
    """Weighted means of positions; a sampling grid is held."""
    if call["grid"] is not None:
        call.zero(call["grid"])
    return windows(call, 3 if call.operator.endswith("3d") else 2 if call.operator.endswith("2d") else len(call.out_shape) - 2)


@scale_rule("aten::upsample_trilinear3d", family="reduction")
def trilinear(call: Call) -> Any:
    """Weighted means of positions in three axes."""
    return windows(call, 3)


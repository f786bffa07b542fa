"""Reductions along named axes: the field is constant along them."""

from __future__ import annotations

from typing import Any

from ..field import AnyField, ScaleField, times
from ..field.structure import reshape
from .call import Call, Field, is_floating
from .laws import barrier, reduce, same_field, zero_field
from .registry import family, scale_rule

__all__ = ["reduced_axes"]


def reduced_axes(call: Call) -> list[int]:
    """Returns the axes that the call reduces, all of them where none is named."""
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
        "aten::mean", "aten::sum", "aten::nansum", "aten::nanmean", "aten::amax", "aten::amin", "aten::max.dim",
        "aten::min.dim", "aten::max.default", "aten::min.default", "aten::std", "aten::median.default", "aten::norm",
        "aten::linalg_vector_norm", "aten::frobenius_norm", "aten::aminmax", "aten::linalg_norm",
        "aten::linalg_matrix_norm", "aten::trace",
    ],
)  # fmt: skip


@scale_rule("aten::var", family="reduction")
def variance(call: Call) -> Field:
    """var(t x) = t^2 var(x): the field is constant along the axes, and doubled."""
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

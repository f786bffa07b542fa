"""Comparisons and selections: positive factors keep signs and the order of tensors that carry the same field."""

from __future__ import annotations

from typing import Any

from ..field import AnyField, ScaleField
from ..field.structure import reshape
from .call import Call, Field, is_floating
from .laws import barrier, passes, same_field, zero_field
from .registry import family, scale_rule


def compare(call: Call) -> Any:
    """x < y iff t x < t y; against a constant only the sign (y = 0) and infinities are kept."""
    other = call["other"]
    if isinstance(other, (int, float)):
        if not (other == 0 or other in (float("inf"), float("-inf"))) and is_floating(call.fakes["self"]):
            call.barrier = "compared with a constant that does not move with the scale"
            call.zero(call["self"])
        return zero_field(call)
    floating = [name for name in ("self", "other") if is_floating(call.fakes.get(name))]
    if len(floating) == 2:
        shape = tuple(call.output.shape) if hasattr(call.output, "shape") else call.shape("self")
        same_field(call, [call["self"], call["other"]], shape)
    elif floating:
        call.zero(call[floating[0]])
    return zero_field(call)


family(
    "comparison",
    compare,
    [
        "aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt", "aten::ge", "aten::greater", "aten::less",
        "aten::greater_equal", "aten::less_equal", "aten::not_equal",
    ],
)  # fmt: skip


@scale_rule(
    "aten::sign", "aten::sgn", "aten::isnan", "aten::isinf", "aten::isfinite", "aten::signbit", "aten::logical_not",
    "aten::logical_and", "aten::logical_or", "aten::logical_xor", "aten::nonzero", "aten::any", "aten::all",
    "aten::count_nonzero", "aten::isposinf", "aten::isneginf", "aten::isreal", "aten::where.default", "aten::_is_all_true",
    "aten::_is_any_true",
    family="comparison",
)  # fmt: skip
def sign(call: Call) -> Any:
    """f(t x) = f(x): signs, zeros and infinities alone matter, which positive factors keep."""
    return zero_field(call)


@scale_rule(
    "aten::bitwise_not", "aten::bitwise_and", "aten::bitwise_or", "aten::bitwise_xor", "aten::__and__", "aten::__or__",
    "aten::__xor__", "aten::floor_divide", "aten::remainder", "aten::fmod", "aten::bitwise_right_shift",
    "aten::bitwise_left_shift",
    family="comparison",
)  # fmt: skip
def integers(call: Call) -> Any:
    """Imposes nothing on integers and booleans; holds floating-point arguments."""
    if call.tensors():
        return barrier(call, f"{call.operator.removeprefix('aten::')} rounds")
    return zero_field(call)


@scale_rule("aten::copysign", family="comparison")
def copysign(call: Call) -> Field:
    """|x| with the sign of y: positive factors of y change nothing."""
    return passes(call)


@scale_rule("aten::heaviside", family="comparison")
def heaviside(call: Call) -> Any:
    """0, 1, or a given value where x is 0: the value is held."""
    call.zero(call["values"])
    return zero_field(call)


@scale_rule("aten::isclose", family="barrier")
def isclose(call: Call) -> Any:
    """The tolerance does not move with the scale."""
    return barrier(call, "compared up to a tolerance that does not move with the scale")


@scale_rule("aten::where.self", "aten::where.ScalarOther", "aten::where.ScalarSelf", "aten::where.Scalar", family="comparison")
def where(call: Call) -> Field:
    """Entries of x or y: both carry the same field (a constant 0 or infinity carries any)."""
    values = [_or_constant(call, name) for name in ("self", "other")]
    return same_field(call, values, call.out_shape)


def _or_constant(call: Call, name: str) -> Field:
    """Returns the field of an argument that may be a Python number."""
    value = call[name]
    if isinstance(value, (int, float)):
        carries_any = value == 0 or value in (float("inf"), float("-inf"))
        return AnyField(()) if carries_any else ScaleField(())
    if not is_floating(call.fakes.get(name)):
        return ScaleField(call.shape(name))
    return value  # type: ignore[no-any-return]


@scale_rule("aten::masked_fill", family="comparison")
def masked_fill(call: Call) -> Field:
    """Entries of x or a constant: a constant other than 0 and infinity holds x."""
    if not is_floating(call.output):
        return ScaleField(call.out_shape)
    return same_field(call, [call["self"], _or_constant(call, "value")], call.out_shape)


@scale_rule("aten::argmax", "aten::argmin", "aten::argsort", family="comparison")
def argmax(call: Call) -> Any:
    """The place of the largest entry: the field is constant along the axis."""
    _along(call)
    return zero_field(call)


@scale_rule("aten::topk", "aten::sort", "aten::kthvalue", "aten::mode", "aten::median.dim", family="comparison")
def sort(call: Call) -> Any:
    """Entries move along an axis by their order: the field is constant along it."""
    values = _along(call)
    shape = tuple(call.output[0].shape)
    places = ScaleField(tuple(call.output[1].shape))
    if isinstance(values, AnyField):
        return (AnyField(shape), places)
    if len(shape) == len(values.shape):
        return (ScaleField(shape, values.terms), places)
    axis = (call["dim"] if call["dim"] is not None else -1) % len(values.shape)
    kept = tuple(1 if k == axis else size for k, size in enumerate(values.shape))
    return (reshape(ScaleField(kept, values.terms), shape), places)


@scale_rule("aten::_unique2", "aten::unique_consecutive", "aten::unique_dim", family="comparison")
def unique(call: Call) -> Any:
    """Finds entries or slices that differ, in some order: all entries carry one field."""
    value = call["self"]
    if is_floating(call.fakes["self"]) and not isinstance(value, AnyField):
        value = call.constant(call.field("self"), range(len(call.shape("self"))))
    first, *others = call.output
    rank = len(first.shape)
    if isinstance(value, ScaleField):
        value = ScaleField(tuple(first.shape), tuple((c, ids.reshape((1,) * rank)) for c, ids in value.terms))
    else:
        value = AnyField(tuple(first.shape))
    return (value, *(ScaleField(tuple(other.shape)) for other in others))


def _along(call: Call) -> Any:
    """Requires a constant field along the call's axis (all axes where none is given)."""
    if isinstance(call["self"], AnyField) or not is_floating(call.fakes["self"]):
        return AnyField(call.shape("self"))
    rank = len(call.shape("self"))
    default = None if call.operator in ("aten::argmax", "aten::argmin") else -1
    axis = call["dim"] if call["dim"] is not None else default
    return call.constant(call.field("self"), range(rank) if axis is None else [axis % rank] if rank else [])

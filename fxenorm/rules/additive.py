"""Additive operators: all terms of a sum carry the same field; a constant other than zero forces zero.

One constant does not: a number that is added to a parameter alone. The parameter then moves so that the sum is multiplied.
"""

from __future__ import annotations

from typing import Any

from ..field import AnyField, ParameterView, ScaleField
from .call import Call, Field, is_floating
from .laws import barrier, reduce, same_field
from .multiplicative import quotient_field
from .operands import operand, plain_number
from .registry import scale_rule


def _affine_image(call: Call) -> ParameterView | None:
    """Returns a parameter with a number added to each of its entries: c + k w is still that parameter. None for other sums."""
    if call.operator == "aten::lerp":
        return None
    alpha = call["alpha"] if isinstance(call["alpha"], (int, float)) else 1
    factors = {"aten::add": (1, alpha), "aten::rsub": (-alpha, 1)}.get(call.operator, (1, -alpha))
    pairs = list(zip(("self", "other"), factors, strict=True))
    for (name, factor), (added, times) in (pairs, pairs[::-1]):
        view = call[name]
        if not isinstance(view, ParameterView) or not is_floating(call.fakes[name]) or tuple(view.shape) != call.out_shape:
            continue
        number = plain_number(call, added)
        if number is not None and number * times != 0:
            return view.multiplied(factor).plus(number * times)
    return None


@scale_rule("aten::add", "aten::sub", "aten::subtract", "aten::rsub", "aten::lerp", family="additive")
def add(call: Call) -> Any:
    """t x + t y = t (x + y). A number added to a parameter makes an affine image of it, which moves as a whole."""
    if not is_floating(call.output):
        return ScaleField(call.out_shape)
    image = _affine_image(call)
    if image is not None:
        return image
    names = ["self", "end", "weight"] if call.operator == "aten::lerp" else ["self", "other"]
    if call.operator == "aten::lerp":
        if isinstance(call["weight"], (ScaleField, ParameterView)):
            call.zero(call["weight"])
        names = names[:2]
    values = [operand(call, name) for name in names]
    if call["alpha"] == 0:
        values[1] = AnyField(())
    for name in names:
        call.roles[name] = "bias"
    if call.options.biases == "skip":
        kept: list[Field] = [value for value in values if not isinstance(value, ParameterView)]
        if kept and len(kept) < len(values):
            for value in values:
                call.zero(value) if isinstance(value, ParameterView) else None
            call.inexact.append('added parameters are left alone (biases="skip")')
            values = kept
    return same_field(call, values, call.out_shape)


@scale_rule("aten::addcmul", "aten::addcdiv", family="additive")
def addcmul(call: Call) -> Any:
    """x + v a b (or a / b): the field of x is that of the product."""
    value = quotient_field(call, "tensor1", "tensor2", 1 if call.operator == "aten::addcmul" else -1, call.out_shape)
    call.roles["self"] = "bias"
    return same_field(call, [operand(call, "self"), value], call.out_shape)


@scale_rule("aten::cumsum", "aten::cummax", "aten::cummin", "aten::diff", family="additive")
def cumsum(call: Call) -> Any:
    """Partial sums along an axis: the field is constant along it."""
    if not call.tensors():
        return ScaleField(call.out_shape)
    if call["prepend"] is not None or call["append"] is not None:
        return barrier(call, "diff with prepended or appended values")
    shape = call.shape("self")
    axis = (call["dim"] if call["dim"] is not None else -1) % max(len(shape), 1)
    value = reduce(call, call["self"], [], shape)
    if isinstance(value, ScaleField):
        value = call.constant(value, [axis])
    result = AnyField(call.out_shape) if isinstance(value, AnyField) else ScaleField(call.out_shape, value.terms)  # type: ignore[union-attr]
    if isinstance(call.output, (tuple, list)):
        return (result, ScaleField(tuple(call.output[1].shape)))
    return result

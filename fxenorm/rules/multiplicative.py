"""Multiplicative operators: log-scales add, subtract, double, halve."""

from __future__ import annotations

import math
from typing import Any

from ..field import AnyField, ParameterView, ScaleField, Step, align, invert, product, simplify, times
from ..field.structure import broadcast, reshape
from .call import Call, Field, is_floating
from .laws import barrier
from .operands import plain_number
from .registry import scale_rule

__all__ = ["power", "quotient_field"]


@scale_rule("aten::mul", "aten::multiply", family="multiplicative")
def mul(call: Call) -> Any:
    """(t x)(u y) = (t u)(x y)."""
    if not is_floating(call.output):
        return ScaleField(call.out_shape)
    return quotient_field(call, "self", "other", 1, call.out_shape)


@scale_rule("aten::div", "aten::divide", "aten::true_divide", family="multiplicative")
def div(call: Call) -> Any:
    """(t x) / (u y) = (t / u)(x / y)."""
    if call["rounding_mode"] is not None:
        return barrier(call, "division that rounds") if call.tensors() else ScaleField(call.out_shape)
    return quotient_field(call, "self", "other", -1, call.out_shape)


def quotient_field(call: Call, first: str, second: str, sign: int, shape: tuple[int, ...]) -> Field:
    """Returns the field of first * second**sign, sign = +-1."""
    values = [call[name] if is_floating(call.fakes.get(name)) else None for name in (first, second)]
    if isinstance(values[0], AnyField) or (isinstance(values[1], AnyField) and sign == 1):
        # A parameter times 0 does not matter: it gets no field here.
        return AnyField(shape)
    if isinstance(values[1], AnyField):
        # x / inf = 0 and x / 0 = inf, both carry any field.
        return AnyField(shape)
    for name, constant, value in ((first, second, values[1]), (second, first, values[0])):
        view = call[name]
        # A parameter times a constant (a mask, a gain) is still a parameter.
        kept = isinstance(view, ParameterView) and not (name == second and sign == -1) and not call.active.get(constant, False)
        if kept and (value is None or (isinstance(value, ScaleField) and value.is_zero and tuple(view.shape) == shape)):
            number = plain_number(call, constant)
            view = view.multiplied(number if sign == 1 or not number else 1 / number)
            return view if tuple(view.shape) == shape else _expanded(call, view, shape)
    for name, value, other in ((first, values[0], values[1]), (second, values[1], values[0])):
        if isinstance(value, ParameterView) and isinstance(other, ScaleField) and all(step.backward for step in value.steps):
            call.roles[name] = "weight"
            if name == first:
                return _absorbed(call, value, other if sign == 1 else invert(other), 1, shape)
            return _absorbed(call, value, other, sign, shape)
    total = []
    for name, value, power_of in zip((first, second), values, (1, sign), strict=True):
        if value is None:
            continue
        if isinstance(value, ParameterView):
            call.roles[name] = "weight"
        field = call.settle(value)
        total.append(field if power_of == 1 else invert(field))
    return product(shape, *total)


def _absorbed(call: Call, view: ParameterView, other: ScaleField, power_of: int, shape: tuple[int, ...]) -> ScaleField:
    """Returns the field of other * view ** (+-1): the parameter undoes all it can of the other's, and starts a new one."""
    padded = (1,) * (len(shape) - len(view.shape)) + view.shape
    foreign = [axis for axis, size in enumerate(padded) if size == 1]
    terms = align(other, shape).terms
    passing = tuple(term for term in terms if any(term[1].shape[axis] > 1 for axis in foreign))
    undone = ScaleField(padded, tuple(term for term in terms if all(term[1].shape[axis] == 1 for axis in foreign)))
    new = call.parameters.free(padded)
    wanted = times(product(padded, new, invert(undone)), power_of)
    call.give(view, reshape(wanted, view.shape))
    return ScaleField(shape, simplify([*new.terms, *passing]))


def _expanded(call: Call, view: ParameterView, shape: tuple[int, ...]) -> ParameterView:
    """Returns a parameter broadcast to `shape`, with the way back."""
    padded = (1,) * (len(shape) - len(view.shape)) + view.shape

    def back(wanted: ScaleField) -> ScaleField:
        constant = call.constant(wanted, [axis for axis, size in enumerate(padded) if size == 1])
        return reshape(ScaleField(padded, constant.terms), view.shape)

    return view.then(shape, Step(lambda f: broadcast(f, shape), back))


def power(call: Call, value: Field, exponent: float, shape: tuple[int, ...]) -> Field:
    """(t x)^k = t^k x^k; a half-integer k asks for a field that is twice another."""
    if exponent == 0:
        return ScaleField(shape)
    if isinstance(value, AnyField):
        return AnyField(shape)
    field = ScaleField(shape, call.settle(value).terms)
    if float(exponent).is_integer():
        return times(field, int(exponent))
    denominator = next((d for d in range(2, 13) if float(exponent * d).is_integer()), None)
    if denominator is None:
        call.barrier = f"power {exponent}"
        call.zero(field)
        return ScaleField(shape)
    if field.is_zero:
        return field
    if all(coefficient % denominator == 0 for coefficient, _ in field.terms):
        root = ScaleField(shape, tuple((coefficient // denominator, ids) for coefficient, ids in field.terms))
    else:
        root = call.equations.fresh(shape, [axis for axis in range(len(shape)) if field.varies_along(axis)])
        call.equal(times(root, denominator), field)
    return times(root, math.floor(exponent * denominator + 0.5))


@scale_rule("aten::pow.Tensor_Scalar", "aten::float_power.Tensor_Scalar", family="multiplicative")
def pow_rule(call: Call) -> Any:
    """(t x)^k = t^k x^k: the field is multiplied by k."""
    if not is_floating(call.fakes["self"]) or not isinstance(call["exponent"], (int, float)):
        return barrier(call, "power of an integer tensor")
    return power(call, call["self"], call["exponent"], call.out_shape)


@scale_rule("aten::square", family="multiplicative")
def square(call: Call) -> Any:
    """(t x)^2 = t^2 x^2: the field is doubled."""
    return power(call, call["self"], 2, call.out_shape)


@scale_rule("aten::sqrt", family="multiplicative")
def sqrt(call: Call) -> Any:
    """sqrt(t x) = t^(1/2) sqrt(x): the field is halved."""
    return power(call, call["self"], 0.5, call.out_shape)


@scale_rule("aten::rsqrt", family="multiplicative")
def rsqrt(call: Call) -> Any:
    """(t x)^(-1/2) = t^(-1/2) x^(-1/2): the field is halved and turned round."""
    return power(call, call["self"], -0.5, call.out_shape)


@scale_rule("aten::reciprocal", family="multiplicative")
def reciprocal(call: Call) -> Any:
    """1 / (t x) = t^(-1) / x."""
    return power(call, call["self"], -1, call.out_shape)


@scale_rule("aten::pow.Scalar", "aten::pow.Tensor_Tensor", family="multiplicative")
def power_of_tensor(call: Call) -> Any:
    """x^y with a tensor y scales by t^y, which is no constant."""
    return barrier(call, "a power whose exponent is a tensor")


@scale_rule("aten::prod", "aten::cumprod", family="multiplicative")
def prod(call: Call) -> Any:
    """A product along an axis multiplies as many scales as it has entries; held."""
    return barrier(call, "products along an axis are held")

"""Homogeneous operators: f(t x) = t f(x) for every t > 0, entry by entry, so the field passes.

Left out: gelu, silu, tanh, sigmoid, softplus, elu, mish (no such law); relu6, hardtanh, hardswish (the bend stays).
"""

from __future__ import annotations

import math
from typing import Any

from ..field import ParameterView
from .call import Call, Field, is_floating
from .laws import barrier, number, passes, same_field, zero_field
from .registry import family, scale_rule

# Values are kept, or multiplied by a constant or by a mask that does not depend on them. A parameter stays a parameter.
COPIES = [
    "aten::alias", "aten::clone", "aten::contiguous", "aten::detach", "aten::lift_fresh", "aten::lift_fresh_copy",
    "aten::positive", "aten::resolve_conj", "aten::resolve_neg", "aten::dropout", "aten::feature_dropout",
]  # fmt: skip

HOMOGENEOUS = [
    "aten::relu", "aten::leaky_relu", "aten::rrelu", "aten::abs", "aten::real", "aten::imag", "aten::conj", "aten::_conj",
    "aten::_conj_physical", "aten::conj_physical",
]  # fmt: skip


def _first(call: Call) -> str:
    """Returns the name of the operator's first argument."""
    return next(iter(call.arguments))


def copies(call: Call) -> Field:
    """f(x) = x, or m x with a mask m that does not depend on x."""
    value = call[_first(call)]
    if isinstance(value, ParameterView):
        return value
    return passes(call, _first(call))


def homogeneous(call: Call) -> Field:
    """f(t x) = t f(x), t > 0."""
    return passes(call, _first(call))


family("homogeneous", copies, COPIES)
family("homogeneous", homogeneous, HOMOGENEOUS)


@scale_rule("aten::neg", "aten::negative", family="homogeneous")
def negative(call: Call) -> Field:
    """-(t x) = t (-x): the field passes; a parameter stays a parameter."""
    value = call["self"]
    return value.multiplied(-1) if isinstance(value, ParameterView) else passes(call)


@scale_rule("aten::to", "aten::type_as", "aten::_to_copy", family="homogeneous")
def to(call: Call) -> Any:
    """A change of dtype: x stays x up to rounding; to integers only if x is left as it is."""
    if not is_floating(call.fakes.get("self")):
        return zero_field(call)
    if not is_floating(call.output):
        return barrier(call, "conversion to integers rounds")
    return copies(call)


@scale_rule("aten::prelu", "aten::_prelu_kernel", family="homogeneous")
def prelu(call: Call) -> Field:
    """f(x) = max(x, 0) + a min(x, 0): homogeneous in x for fixed slopes a."""
    call.roles["weight"] = "slope"
    call.zero(call["weight"])
    return passes(call)


@scale_rule(
    "aten::clamp", "aten::clip", "aten::hardtanh", "aten::clamp_min", "aten::clamp_max", "aten::relu6", family="homogeneous"
)
def clamp(call: Call) -> Any:
    """min(max(x, lo), hi) is homogeneous iff each bound is 0 or infinite, or carries the field of x."""
    if call.operator == "aten::relu6":
        bounds = [0.0, 6.0]
    else:
        bounds = [call[name] for name in ("min", "max", "min_val", "max_val") if call[name] is not None]
    name = call.operator.removeprefix("aten::")
    if "relu6" in call.options.approximate and name in ("hardtanh", "relu6", "clamp") and bounds == [0, 6]:
        name = "relu6"
    if all(isinstance(bound, (int, float)) and (bound == 0 or math.isinf(bound)) for bound in bounds):
        return passes(call)
    if any(not isinstance(bound, (int, float)) for bound in bounds):
        return same_field(call, [call["self"], *(number(bound) for bound in bounds)], call.out_shape)
    if name in call.options.approximate:
        call.inexact.append(f"{name} is treated as homogeneous (approximate)")
        return passes(call)
    return barrier(call, "the bounds do not move with the scale")


@scale_rule("aten::threshold", family="homogeneous")
def threshold(call: Call) -> Any:
    """x where x > t else v: homogeneous iff t = v = 0."""
    if call["threshold"] == 0 and call["value"] == 0:
        return passes(call)
    return barrier(call, "the threshold does not move with the scale")


@scale_rule(
    "aten::maximum", "aten::minimum", "aten::max.other", "aten::min.other", "aten::max.out", "aten::min.out", "aten::fmax",
    "aten::fmin", "aten::hypot",
    family="homogeneous",
)  # fmt: skip
def maximum(call: Call) -> Any:
    """max(t x, t y) = t max(x, y): both carry the same field; against 0 or an infinity the other passes, or stays constant."""
    return same_field(call, [call["self"], call["other"]], call.out_shape)

"""Operators that obey no law of scale: their inputs are held, with the reason. So are those of an operator without any rule."""

from __future__ import annotations

from typing import Any

from ..field import AnyField
from ..field.structure import take_slice
from .call import Call
from .laws import barrier, passes, zero_field
from .registry import scale_rule

NO_RULE = "no scale rule is known for this operator"


@scale_rule(
    "aten::gelu", "aten::silu", "aten::mish", "aten::elu", "aten::selu", "aten::celu", "aten::softplus",
    "aten::log_sigmoid", "aten::hardswish", "aten::hardsigmoid", "aten::sigmoid", "aten::tanh",
    "aten::hardshrink", "aten::softshrink", "aten::alpha_dropout", "aten::feature_alpha_dropout",
    family="barrier",
)  # fmt: skip
def activation(call: Call) -> Any:
    """f(t x) is no power of t times f(x)."""
    name = call.operator.removeprefix("aten::")
    if name in call.options.approximate:
        call.inexact.append(f"{name} is treated as homogeneous (approximate)")
        return passes(call)
    return barrier(call, f"{name} is not homogeneous")


@scale_rule(
    "aten::exp", "aten::expm1", "aten::exp2", "aten::log", "aten::log2", "aten::log10", "aten::log1p", "aten::sin",
    "aten::cos", "aten::tan", "aten::sinh", "aten::cosh", "aten::asin", "aten::acos", "aten::atan", "aten::asinh",
    "aten::acosh", "aten::atanh", "aten::erf", "aten::erfc", "aten::erfinv", "aten::lgamma", "aten::digamma", "aten::i0",
    "aten::sinc", "aten::floor", "aten::ceil", "aten::round", "aten::trunc", "aten::frac", "aten::logit", "aten::softmax",
    "aten::log_softmax", "aten::_softmax", "aten::_log_softmax", "aten::_safe_softmax", "aten::logsumexp",
    "aten::logcumsumexp", "aten::special_expit",
    family="barrier",
)  # fmt: skip
def transcendental(call: Call) -> Any:
    """f(t x) is no power of t times f(x), so x is held."""
    return barrier(call, f"{call.operator.removeprefix('aten::')} is not homogeneous")


@scale_rule(
    "aten::mse_loss", "aten::l1_loss", "aten::smooth_l1_loss", "aten::huber_loss", "aten::cross_entropy_loss",
    "aten::nll_loss", "aten::nll_loss_nd", "aten::binary_cross_entropy", "aten::binary_cross_entropy_with_logits",
    "aten::kl_div",
    family="barrier",
)  # fmt: skip
def loss(call: Call) -> Any:
    """A loss compares its inputs with targets that do not move."""
    return barrier(call, "what enters a loss is held")


@scale_rule("aten::glu", family="barrier")
def glu(call: Call) -> Any:
    """a sigmoid(b): the first half passes, the second is held."""
    call.barrier = "the gate of glu is held"
    if isinstance(call["self"], AnyField):
        return AnyField(call.out_shape)
    field = call.field("self")
    axis = call["dim"] % len(field.shape)
    half = call.out_shape[axis]
    call.zero(take_slice(field, axis, slice(half, 2 * half)))
    return take_slice(field, axis, slice(0, half))


@scale_rule("aten::nan_to_num", family="barrier")
def nan_to_num(call: Call) -> Any:
    """Infinities become constants that do not move with the scale."""
    return barrier(call, "infinities are replaced by constants")


@scale_rule("aten::histc", "aten::bucketize", "aten::searchsorted", family="barrier")
def bins(call: Call) -> Any:
    """Counts and places among boundaries, which do not move; integers pass freely."""
    return barrier(call, "compared with boundaries that do not move with the scale") if call.tensors() else zero_field(call)


@scale_rule("torchvision::nms", family="barrier")
def unknown_number(call: Call) -> Any:
    """Entries are compared with each other, and their number depends on their values."""
    return barrier(call, "the number of results depends on the values")

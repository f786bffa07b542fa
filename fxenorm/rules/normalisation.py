"""Normalising operators: the input is held (a constant inside keeps them from being scale-free); an affine starts a new field."""

from __future__ import annotations

from typing import Any

from ..field import ParameterView, ScaleField, invert, product
from ..field.structure import reshape
from .call import Call, Field
from .contraction import add_bias
from .laws import same_field
from .operands import operand
from .registry import scale_rule


def _affine(call: Call, channel: int) -> Field:
    """gamma x + beta along one axis, for an x that is held."""
    shape = call.out_shape
    y = ScaleField(shape)
    if call["weight"] is not None:
        gamma = call["weight"]
        call.roles["weight"] = "gamma"
        along = (shape[channel],) + (1,) * (len(shape) - 1 - channel)
        field = call.settle(gamma)
        y = product(shape, reshape(field, along))
    return add_bias(call, y, "bias", channel)


def _hold(call: Call, reason: str) -> None:
    """Requires that the input is left as it is, for a reason."""
    call.barrier = reason
    call.zero(call["input"])


def _with_statistics(call: Call, y: Any) -> Any:
    """Returns the result, beside the mean and the deviation of the held input where the operator returns them too."""
    if not isinstance(call.output, (tuple, list)):
        return y
    return (y, *(ScaleField(tuple(other.shape)) for other in call.output[1:]))


@scale_rule(
    "aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::_native_batch_norm_legit_no_training",
    "aten::native_layer_norm", "aten::native_group_norm", "aten::_fused_rms_norm",
    family="normalising",
)  # fmt: skip
def native_norm(call: Call) -> Any:
    """The norms as they are called below autograd, with their statistics."""
    rule = {"batch": batch_norm, "layer": layer_norm, "group": group_norm, "fused": layer_norm}
    return _with_statistics(call, rule[next(kind for kind in rule if kind in call.operator)](call))


@scale_rule("aten::batch_norm", "aten::cudnn_batch_norm", family="normalising")
def batch_norm(call: Call) -> Any:
    """y = gamma (x - mean) / sqrt(var + eps) + beta; see `batchnorm` of `fxenorm.analyze` for its four treatments."""
    mode = call.options.batchnorm
    shape = call.out_shape
    if mode == "skip":
        for name in ("weight", "bias"):
            if call[name] is not None:
                call.roles[name] = "gamma" if name == "weight" else "bias"
                call.zero(call[name])
        call.inexact.append('BatchNorm is looked through and left alone (batchnorm="skip")')
        return ScaleField(shape, call.field("input").terms)
    if mode == "frozen" and not call["training"] and call["running_mean"] is not None:
        return _frozen(call, shape)
    _hold(call, "batch_norm holds what stands in front of it")
    return _affine(call, 1)


def _frozen(call: Call, shape: tuple[int, ...]) -> Field:
    """Returns y's field for fixed statistics: mean follows x, gamma carries y - x, beta follows y, the variance stays."""
    x = call.constant(call.field("input"), [axis for axis in range(len(shape)) if axis != 1])
    along = reshape(ScaleField((1, shape[1], *(1,) * (len(shape) - 2)), x.terms), (shape[1],))
    mean = call["running_mean"]
    call.roles["running_mean"] = "other"
    if isinstance(mean, ParameterView):
        call.give(mean, along)
    else:
        call.equal(call.settle(mean), along)
    if call["weight"] is None:
        return add_bias(call, x, "bias", 1)
    call.roles["weight"] = "gamma"
    gamma = call["weight"]
    if isinstance(gamma, ParameterView):
        new = call.equations.fresh((shape[1],))
        call.give(gamma, product((shape[1],), new, invert(along)))
        y = new
    else:
        y = product((shape[1],), call.settle(gamma), along)
    wide = reshape(y, (1, shape[1], *(1,) * (len(shape) - 2)))
    return add_bias(call, ScaleField(shape, wide.terms), "bias", 1)


@scale_rule("aten::group_norm", "aten::instance_norm", family="normalising")
def group_norm(call: Call) -> Field:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics over groups of channels or positions."""
    _hold(call, f"{call.operator.removeprefix('aten::')} holds what stands in front of it")
    return _affine(call, 1)


@scale_rule("aten::layer_norm", "aten::rms_norm", family="normalising")
def layer_norm(call: Call) -> Any:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics over the last axes."""
    _hold(call, f"{call.operator.removeprefix('aten::')} holds what stands in front of it")
    y = ScaleField(call.out_shape)
    if call["weight"] is not None:
        call.roles["weight"] = "gamma"
        y = product(call.out_shape, call.field("weight"))
    if call["bias"] is None:
        return y
    call.roles["bias"] = "bias"
    if call.options.biases == "skip":
        call.zero(call["bias"])
        call.inexact.append('biases are left alone (biases="skip")')
        return y
    return same_field(call, [y, operand(call, "bias")], call.out_shape)


@scale_rule("aten::_weight_norm", "aten::_weight_norm_interface", family="normalising")
def weight_norm(call: Call) -> Any:
    """W = g v / |v|: the length of v does not matter, g carries the scale."""
    shape = call.shape("v")
    axis = call["dim"] % len(shape)
    call.roles["g"], call.roles["v"] = "weight", "other"
    if isinstance(call["v"], ParameterView):
        # Each slice of v has a scale of its own that changes nothing.
        call.give(call["v"], call.equations.fresh(shape, [axis]))
    else:
        call.constant(call.field("v"), [k for k in range(len(shape)) if k != axis])
    weight = product(shape, call.field("g"))
    if not isinstance(call.output, (tuple, list)):
        return weight
    # The second output is |v|, slice by slice.
    length = call.constant(call.field("v"), [k for k in range(len(shape)) if k != axis])
    return (weight, ScaleField(tuple(call.output[1].shape), length.terms))

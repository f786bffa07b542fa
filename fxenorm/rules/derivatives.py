"""Backward operators: each is linear in the gradient that enters it, so the gradient's field passes.

The tensors of the forward that it reads are held, unless it reads their signs or places alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from ..field import AnyField, ScaleField, product
from ..field.structure import broadcast, concatenate, reshape, select_positions
from .call import Call, Field
from .contraction import as_shape, pointwise
from .laws import barrier, contract, reduce, zero_field
from .registry import family, scale_rule

# Named by their first argument, the gradient: grad_output in most, grad_out or grad in some.
ENTRYWISE = [
    "aten::tanh_backward", "aten::sigmoid_backward", "aten::gelu_backward", "aten::silu_backward", "aten::mish_backward",
    "aten::elu_backward", "aten::softplus_backward", "aten::hardswish_backward", "aten::hardsigmoid_backward",
    "aten::log_sigmoid_backward", "aten::softshrink_backward", "aten::hardshrink_backward", "aten::logit_backward",
]  # fmt: skip
SIGNS = ["aten::leaky_relu_backward", "aten::native_dropout_backward"]
POOLS = [
    *(f"aten::max_pool{n}d_with_indices_backward" for n in (2, 3)),
    *(f"aten::avg_pool{n}d_backward" for n in (2, 3)),
    *(f"aten::_adaptive_avg_pool{n}d_backward" for n in ("2", "3")),
    *(f"aten::adaptive_max_pool{n}d_backward" for n in (2, 3)),
    *(f"aten::upsample_{kind}_backward" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d")),
    *(f"aten::upsample_{kind}_backward" for kind in ("bicubic2d", "trilinear3d")),
]


def _first(call: Call) -> str:
    """Returns the name of the gradient among the arguments."""
    return next(iter(call.arguments))


def _passes(call: Call) -> Field:
    """Returns the field of the gradient, in the shape of the output."""
    value = call[_first(call)]
    return AnyField(call.out_shape) if isinstance(value, AnyField) else ScaleField(call.out_shape, call.settle(value).terms)


def _hold_others(call: Call) -> None:
    """Requires that all tensors but the gradient stay as they are."""
    for name, value in call.tensors():
        if name != _first(call):
            call.zero(value)


def entrywise(call: Call) -> Field:
    """g f'(x): g passes, x (or f(x)) is held."""
    _hold_others(call)
    return _passes(call)


def sign_alone(call: Call) -> Field:
    """g times a number that depends on the sign of x or on a mask alone: g passes, x is free."""
    return _passes(call)


family("derivative", entrywise, ENTRYWISE)
family("derivative", sign_alone, SIGNS)


@scale_rule("aten::threshold_backward", family="derivative")
def threshold_backward(call: Call) -> Field:
    """g where x > t, else 0: at t = 0 only the sign of x is read."""
    return sign_alone(call) if call["threshold"] == 0 else entrywise(call)


@scale_rule("aten::hardtanh_backward", family="derivative")
def hardtanh_backward(call: Call) -> Field:
    """g between the bounds, else 0: with bounds of 0 and infinity only the sign of x is read."""
    bounds = (call["min_val"], call["max_val"])
    return sign_alone(call) if all(bound == 0 or math.isinf(bound) for bound in bounds) else entrywise(call)


@scale_rule("aten::_prelu_kernel_backward", family="derivative")
def prelu_backward(call: Call) -> Any:
    """g where x > 0, else a g; and g min(x, 0): slopes are held."""
    call.zero(call["weight"])
    shape = tuple(call.output[1].shape)
    slopes = product(shape, call.field("grad_output"), call.field("self"))
    return (_passes(call), slopes)


@scale_rule("aten::_softmax_backward_data", "aten::_log_softmax_backward_data", family="derivative")
def softmax_backward(call: Call) -> Field:
    """y (g - sum(y g)), or g - exp(y) sum(g): y is held, g is constant along the axis."""
    _hold_others(call)
    if isinstance(call["grad_output"], AnyField):
        return AnyField(call.out_shape)
    rank = len(call.out_shape)
    return call.constant(call.field("grad_output"), [call["dim"] % rank] if rank else [])


def pool_backward(call: Call) -> Field:
    """Gradients of windows go back to the positions that they came from: constant along positions."""
    name = _first(call)
    axes = int(call.operator.split("d_")[0][-1])
    if isinstance(call[name], AnyField):
        return AnyField(call.out_shape)
    rank = len(call.out_shape)
    return ScaleField(call.out_shape, call.constant(call.field(name), range(rank - axes, rank)).terms)


family("derivative", pool_backward, POOLS)


def placed(call: Call, field: ScaleField, axis: int, size: int, positions: Sequence[int]) -> ScaleField:
    """Returns a field at some positions of an axis of `size`; the others are zeros, which carry whatever they are asked to."""
    shape = (*field.shape[:axis], size, *field.shape[axis + 1 :])
    if not field.varies_along(axis):
        return ScaleField(shape, field.terms)
    others = np.setdiff1d(np.arange(size), positions)
    if len(others):
        varying = [k for k in range(len(shape)) if k == axis or field.varies_along(k)]
        around = (*shape[:axis], len(others), *shape[axis + 1 :])
        field = concatenate([field, call.equations.fresh(around, varying)], axis)
    return select_positions(field, axis, np.argsort(np.concatenate([np.asarray(positions, dtype=np.int64), others])))


@scale_rule("aten::slice_backward", "aten::select_backward", family="structural")
def slice_backward(call: Call) -> Field:
    """The gradient at the positions that were read, 0 elsewhere, which carries any field."""
    shape = call.out_shape
    if isinstance(call["grad_output"], AnyField):
        return AnyField(shape)
    axis = call["dim"] % len(shape)
    field = call.field("grad_output")
    if call.operator == "aten::select_backward":
        one = (*shape[:axis], 1, *shape[axis + 1 :])
        # One position out of many: the zeros around it carry its field.
        return broadcast(reshape(field, one), shape)
    positions = range(*slice(call["start"], call["end"], call["step"]).indices(shape[axis]))
    return placed(call, field, axis, shape[axis], positions)


@scale_rule("aten::value_selecting_reduction_backward", family="structural")
def selected_backward(call: Call) -> Field:
    """The gradient of a maximum at the place that it came from, 0 elsewhere."""
    shape = call.out_shape
    if isinstance(call["grad"], AnyField):
        return AnyField(shape)
    axis = call["dim"] % max(len(shape), 1)
    one = tuple(1 if k == axis else size for k, size in enumerate(shape))
    return broadcast(reshape(call.field("grad"), one), shape)


@scale_rule("aten::embedding_dense_backward", family="derivative")
def embedding_backward(call: Call) -> Field:
    """Gradients are summed in the rows that were read: one field for all."""
    shape = call.out_shape
    if isinstance(call["grad_output"], AnyField):
        return AnyField(shape)
    field = call.field("grad_output")
    lead = range(len(field.shape) - 1)
    one = ScaleField((*(1,) * len(lead), shape[1]), call.constant(field, lead).terms)
    return broadcast(reshape(one, (1, shape[1])), shape)


@scale_rule("aten::convolution_backward", family="derivative")
def convolution_backward(call: Call) -> Any:
    """dx = g W^T, dW = sum over batch and positions of g x, db = the same sum of g."""
    x_shape, w_shape = call.shape("input"), call.shape("weight")
    groups, spatial = call["groups"], len(w_shape) - 2
    transposed = bool(call["transposed"])
    batch, outputs = x_shape[0], call.shape("grad_output")[1] // groups
    inputs = x_shape[1] // groups
    g, x = (call[name] if isinstance(call[name], AnyField) else call.field(name) for name in ("grad_output", "input"))
    alone = pointwise(call, w_shape[2:])

    def grouped(value: Field, channels: int, positions: Sequence[int], constant: bool) -> Field:
        """(batch, groups, channels, positions); constant along the positions where taps mix them."""
        shape = (batch, groups, channels, *positions)
        if isinstance(value, AnyField):
            return AnyField(shape)
        field = call.settle(value)
        field = call.constant(field, range(2, 2 + spatial)) if constant else field
        return reshape(ScaleField((batch, groups * channels, *positions), field.terms), shape)

    places, taps = ascii_lowercase[:spatial], ascii_lowercase[spatial : 2 * spatial]
    found: list[Any] = [None, None, None]
    if call["output_mask"][0]:
        kernel = (groups, inputs, outputs, *w_shape[2:]) if transposed else (groups, outputs, inputs, *w_shape[2:])
        weight = as_shape(call["weight"], kernel)
        entering = grouped(g, outputs, x_shape[2:], not alone)
        y = contract(call, entering, f"NGO{places}", weight, ("GJO" if transposed else "GOJ") + taps, f"NGJ{places}")
        found[0] = as_shape(y, x_shape)
    if call["output_mask"][1]:
        order = ("GJO" if transposed else "GOJ") + taps
        a, b = grouped(g, outputs, [1] * spatial, True), grouped(x, inputs, [1] * spatial, True)
        y = contract(call, a, f"NGO{places}", b, f"NGJ{places}", order[:3])
        wide = AnyField(w_shape) if isinstance(y, AnyField) else _with_taps(call.settle(y), w_shape)
        found[1] = wide
    if call["output_mask"][2]:
        axes = [axis for axis in range(2 + spatial) if axis != 1]
        found[2] = reduce(call, g, axes, (groups * outputs,))
    return tuple(found)


def _with_taps(field: ScaleField, shape: tuple[int, ...]) -> ScaleField:
    """(groups, a, b) as a weight of `shape`, constant along its taps."""
    flat = reshape(field, (shape[0], shape[1]))
    return broadcast(reshape(flat, (*shape[:2], *(1,) * (len(shape) - 2))), shape)


@scale_rule("aten::native_layer_norm_backward", family="derivative")
def layer_norm_backward(call: Call) -> Any:
    """Linear in g gamma, which is constant along the normalised axes; the input and its statistics are held."""
    for name in ("input", "mean", "rstd"):
        call.zero(call[name])
    shape = call.shape("input")
    kept = len(shape) - len(call["normalized_shape"])
    found: list[Any] = [None, None, None]
    g = call["grad_out"]
    if isinstance(g, AnyField):
        return tuple(AnyField(tuple(item.shape)) if hasattr(item, "shape") else None for item in call.output)
    g = call.settle(g)
    if call["output_mask"][0]:
        inner = product(shape, g) if call["weight"] is None else product(shape, g, call.field("weight"))
        found[0] = call.constant(inner, range(kept, len(shape)))
    for position in (1, 2):
        if call["output_mask"][position]:
            found[position] = reduce(call, g, range(kept), shape[kept:])
    return tuple(found)


@scale_rule(
    "aten::native_batch_norm_backward", "aten::native_group_norm_backward", "aten::glu_backward", "aten::mse_loss_backward",
    "aten::nll_loss_backward", "aten::smooth_l1_loss_backward", "aten::huber_loss_backward", "aten::_fused_rms_norm_backward",
    family="barrier",
)  # fmt: skip
def held_derivative(call: Call) -> Any:
    """Held: more of the forward enters than signs."""
    return barrier(call, f"{call.operator.removeprefix('aten::')} is held") if call.tensors() else zero_field(call)

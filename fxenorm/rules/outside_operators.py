"""Operators of other libraries: torchvision's detection operators, grouped products of expert weights."""

from __future__ import annotations

from typing import Any

from ..field import AnyField, ScaleField
from ..field.structure import reshape
from .call import Call, Field
from .contraction import add_bias
from .einsum_letters import contract_all
from .laws import barrier, contract
from .registry import scale_rule


@scale_rule(
    "torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align", "torchvision::ps_roi_pool", family="reduction"
)
def region_of_interest(call: Call) -> Any:
    """Means or maxima of positions inside boxes, channel by channel: constant along images and positions; boxes are held."""
    call.zero(call["rois"])
    outputs = call.output if isinstance(call.output, (tuple, list)) else [call.output]
    shape = tuple(outputs[0].shape)
    if isinstance(call["input"], AnyField):
        value: Any = AnyField(shape)
    else:
        field = call.constant(call.field("input"), [0, 2, 3])
        if "ps_roi" in call.operator:
            # Channel (c, i, j) of the input is read at bin (i, j) of channel c of the output.
            field = reshape(ScaleField((1, field.shape[1], 1, 1), field.terms), (1, *shape[1:]))
        value = ScaleField(shape, field.terms)
    return (value, *(ScaleField(tuple(other.shape)) for other in outputs[1:])) if len(outputs) > 1 else value


@scale_rule("torchvision::deform_conv2d", family="contraction")
def deform_conv2d(call: Call) -> Any:
    """y[o, p] = sum over i, k of m[k, p] x[i, p + k + offset[p]] W[o, i, k] + b[o]: offsets are held."""
    call.zero(call["offset"])
    call.roles["input"] = call.roles["weight"] = "weight"
    x = call.constant(call.field("input"), [2, 3])
    if x.shape[1] != call.shape("weight")[1]:
        return barrier(call, "deform_conv2d with groups is held")
    shape = call.out_shape
    wide = ScaleField((*x.shape[:2], *shape[2:]), x.terms)
    taps = call.shape("weight")[2:]
    operands: list[tuple[Field, str]] = [(wide, "NIab"), (call["weight"], "OIcd")]
    if call["use_mask"] and call["offset_groups"] == 1:
        mask = reshape(call.field("mask"), (shape[0], *taps, *shape[2:]))
        operands.insert(1, (mask, "Ncdab"))
    else:
        call.zero(call["mask"])
    y = contract_all(call, operands, "NOab")
    return add_bias(call, y, "bias", 1)


@scale_rule("aten::_grouped_mm", "transformers::grouped_mm_fallback", family="contraction")
def grouped_mm(call: Call) -> Any:
    """y[t, m] = sum_k x[t, k] W[e(t), k, m], the expert e(t) unknown: as if every token met every expert."""
    first, second = list(call.arguments)[:2]
    if (len(call.shape(first)), len(call.shape(second))) != (2, 3):
        return barrier(call, "a grouped product of other than tokens and a stack of weights")
    call.roles[first] = call.roles[second] = "weight"
    chosen = ScaleField((call.shape(first)[0], call.shape(second)[0]))
    return contract_all(call, [(call[first], "TK"), (chosen, "TE"), (call[second], "EKM")], "TM")


def grouped_by_expert(call: Call) -> Field:
    """Returns the same by expert: y[e, m] = sum_k x[e, k] W[e, k, m], x of one row where it is the same for every expert."""
    first, second = list(call.arguments)[:2]
    call.roles[first] = call.roles[second] = "weight"
    return contract(call, call[first], "EK", call[second], "EKM", "EM")

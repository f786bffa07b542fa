"""Padding: by zeros (which carry any field), by a constant, or by entries of the tensor itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..field import AnyField, ScaleField
from ..field.overlay import Place, filled, overlay, patchwork_of
from ..field.structure import concatenate, select_positions
from .call import Call, Field, is_floating
from .positions import LARGEST
from .registry import scale_rule


@scale_rule(
    "aten::pad", "aten::constant_pad_nd", "aten::reflection_pad1d", "aten::reflection_pad2d", "aten::reflection_pad3d",
    "aten::replication_pad1d", "aten::replication_pad2d", "aten::replication_pad3d",
    family="structural",
)  # fmt: skip
def pad(call: Call) -> Field:
    """y = x with `pad` = (before, after) of the last axis, of the one before it, ... added around."""
    shape, new, pads = call.shape("self"), call.out_shape, call["pad"] if call["pad"] is not None else call["padding"]
    mode = {"refl": "reflect", "repl": "replicate"}.get(call.operator[6:10], call["mode"] or "constant")
    value = call["value"] if call["value"] is not None else 0.0
    held = mode == "constant" and value != 0 and not math.isinf(value)
    if isinstance(call["self"], AnyField) and not held:
        return AnyField(new)
    if mode == "constant" and is_floating(call.output):
        start = call["self"] if isinstance(call["self"], AnyField) else call.field("self")
        if isinstance(start, AnyField) or (start.is_zero and not held):
            return _around(call, start, pads, held)
    field = call.field("self")
    for k in range(len(pads) // 2):
        axis = len(shape) - 1 - k
        before, after = pads[2 * k], pads[2 * k + 1]
        if before == after == 0:
            continue
        if mode == "constant":
            field = _constant(call, field, axis, before, after, value)
        else:
            size = field.shape[axis]
            named: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
            source = np.pad(np.arange(size), (before, after), mode=named)
            field = select_positions(field, axis, source)
    return field


def _around(call: Call, value: ScaleField | AnyField, pads: Sequence[int], held: bool) -> Field:
    """Returns the field of zeros, which carry any field, around entries without a scale, or of another constant around zeros."""
    places: list[Place] = [None] * len(value.shape)
    kept = list(value.shape)
    for k in range(len(pads) // 2):
        axis, before, after = len(kept) - 1 - k, pads[2 * k], pads[2 * k + 1]
        kept[axis] += min(0, before) + min(0, after)
        if before > 0 or after > 0:
            places[axis] = slice(max(0, before), max(0, before) + kept[axis])
    inner = AnyField(tuple(kept)) if isinstance(value, AnyField) else ScaleField(tuple(kept))
    outer = ScaleField(call.out_shape) if held else AnyField(call.out_shape)
    if math.prod(size for size, place in zip(call.out_shape, places, strict=True) if place is not None) > LARGEST:
        return ScaleField(call.out_shape)
    return filled(overlay(patchwork_of(outer), patchwork_of(inner), places), call.equations)


def _constant(call: Call, field: ScaleField, axis: int, before: int, after: int, value: float) -> ScaleField:
    """Pads one axis by a constant; a negative width crops."""
    size = field.shape[axis]
    kept = select_positions(field, axis, np.arange(max(0, -before), size - max(0, -after)))
    widths = [max(0, before), max(0, after)]
    held = value != 0 and not math.isinf(value)
    new_size = kept.shape[axis] + sum(widths)
    shape = (*kept.shape[:axis], new_size, *kept.shape[axis + 1 :])
    if not any(widths) or (not kept.varies_along(axis) and kept.shape[axis] != 1 and not (held and kept.terms)):
        return ScaleField(shape, kept.terms)
    # The axis carries a field of its own: padded zeros have variables that are tied to nothing yet, other constants have none.
    parts = []
    for part in (widths[0], kept, widths[1]):
        if isinstance(part, ScaleField):
            parts.append(part)
        elif part:
            around = (*kept.shape[:axis], part, *kept.shape[axis + 1 :])
            varying = [k for k in range(len(around)) if k == axis or kept.varies_along(k)]
            parts.append(ScaleField(around) if held else call.equations.fresh(around, varying))
    return concatenate(parts, axis)

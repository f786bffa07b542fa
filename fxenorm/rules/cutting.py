"""Structural operators that cut: one position, a range, or consecutive parts of an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..field import ScaleField
from ..field.structure import reshape, take_slice
from .call import Call, Field
from .laws import move
from .operands import axis_of
from .registry import scale_rule


def _somewhere(call: Call, axis: int, shape: tuple[int, ...], squeeze: bool = False) -> Field:
    """Positions of an axis that depend on the data: the field is constant along it. `squeeze`: one position, its axis dropped."""
    old = call.shape("self")

    def forward(f: ScaleField) -> ScaleField:
        terms = call.constant(f, [axis]).terms
        return ScaleField(shape, tuple((c, ids.squeeze(axis)) for c, ids in terms) if squeeze else terms)

    def backward(wanted: ScaleField) -> ScaleField:
        if squeeze:
            return ScaleField(old, tuple((c, np.expand_dims(ids, axis)) for c, ids in wanted.terms))
        return ScaleField(old, call.constant(wanted, [axis]).terms)

    return move(call, call["self"], shape, forward, backward)


@scale_rule("aten::select", family="structural")
def select(call: Call) -> Field:
    """y = x[.., i, ..]: one position of an axis, which is dropped."""
    axis, new = axis_of(call, call["dim"]), call.out_shape
    if "index" in call.unknown:
        return _somewhere(call, axis, new, squeeze=True)
    position = call["index"] % call.shape("self")[axis]
    return move(call, call["self"], new, lambda f: reshape(take_slice(f, axis, slice(position, position + 1)), new))


@scale_rule("aten::slice", family="structural")
def slice_rule(call: Call) -> Field:
    """y = x[.., i:j:k, ..]: a range of positions of an axis."""
    axis, new = axis_of(call, call["dim"] or 0), call.out_shape
    if call.unknown:
        return _somewhere(call, axis, new)
    selection = slice(call["start"], call["end"], call["step"])
    if new == call.shape("self"):
        return call["self"]  # type: ignore[no-any-return]
    return move(call, call["self"], new, lambda f: take_slice(f, axis, selection))


@scale_rule("aten::narrow", family="structural")
def narrow(call: Call) -> Field:
    """A range of positions of an axis, by start and length."""
    axis, new = axis_of(call, call["dim"]), call.out_shape
    start = call["start"]
    if not isinstance(start, int):
        value = call.constants("start", None)
        start = None if value is None else int(value)
    if start is None or call.unknown:
        return _somewhere(call, axis, new)
    start %= max(call.shape("self")[axis], 1)
    return move(call, call["self"], new, lambda f: take_slice(f, axis, slice(start, start + call["length"])))


def _cut(call: Call, axis: int, shapes: Sequence[tuple[int, ...]], squeeze: bool = False) -> list[Field]:
    """Consecutive ranges of an axis, of the given shapes (without the axis where it is squeezed)."""
    parts, start = [], 0
    for shape in shapes:
        length = 1 if squeeze else shape[axis]
        selection = slice(start, start + length)

        def forward(f: ScaleField, selection: slice = selection, shape: tuple[int, ...] = shape) -> ScaleField:
            return reshape(take_slice(f, axis, selection), shape)

        parts.append(move(call, call["self"], shape, forward))
        start += length
    return parts


@scale_rule(
    "aten::split",
    "aten::split_with_sizes",
    "aten::chunk",
    "aten::tensor_split",
    "aten::unsafe_chunk",
    "aten::unsafe_split",
    family="structural",
)
def split(call: Call) -> list[Field]:
    """The tensor in consecutive parts along an axis."""
    axis, shapes = axis_of(call, call["dim"] or 0), [tuple(part.shape) for part in call.output]
    return [_somewhere(call, axis, shape) for shape in shapes] if call.unknown else _cut(call, axis, shapes)


@scale_rule("aten::unbind", family="structural")
def unbind(call: Call) -> list[Field]:
    """Every position of an axis becomes a tensor of its own."""
    return _cut(call, axis_of(call, call["dim"] or 0), [tuple(part.shape) for part in call.output], squeeze=True)

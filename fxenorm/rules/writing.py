"""Operators that write values among the entries of a tensor: by position where that is known, else one field along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..field import AnyField, ScaleField, align
from ..field.overlay import Place, block_of, filled, overlay, patchwork_of, shape_at
from ..field.structure import index, permute, reshape, select_positions, take_slice
from .call import Call, Field, is_floating
from .laws import number, positions_of, same_field, zero_field
from .positions import along_one_axis, named_by, unknown_block
from .registry import scale_rule

__all__: list[str] = []

_ADDS = {"add", "sum", "mean", "amax", "amin", "max", "min"}
"""Ways to combine what is written with what was there that keep a common factor."""


def _value(call: Call, name: str) -> ScaleField | AnyField:
    """Returns the field of an operand of a write, which may be a Python number or a tensor."""
    value: Field = number(call[name])
    if isinstance(value, AnyField):
        return value
    return call.settle(value) if not isinstance(value, ScaleField) else value


def _aligned(value: ScaleField | AnyField, shape: Sequence[int]) -> ScaleField | AnyField:
    """Returns the written field broadcast to the shape of its place."""
    shape = tuple(shape)
    if isinstance(value, AnyField):
        return AnyField(shape)
    extra = len(value.shape) - len(shape)
    if extra > 0:
        # torch drops leading axes of size 1.
        value = reshape(value, value.shape[extra:])
    return align(value, shape)


def _settled(call: Call, base: ScaleField | AnyField, value: ScaleField | AnyField, places: Sequence[Place]) -> Field:
    """Returns the field of a tensor whose entries at known places are replaced by `value`."""
    return filled(overlay(patchwork_of(base), patchwork_of(value), places), call.equations)


def _tie_repeated(call: Call, value: ScaleField | AnyField, shape: Sequence[int], places: Sequence[Place]) -> None:
    """Ties values that are written to one place: they carry the same field."""
    start, rank, _ = block_of(places)
    if rank == 0 or isinstance(value, AnyField) or value.is_zero:
        return
    arrays = np.broadcast_arrays(*(place for place in places if isinstance(place, np.ndarray)))
    sizes = [size for size, place in zip(shape, places, strict=True) if isinstance(place, np.ndarray)]
    flat = np.ravel_multi_index([array.ravel() % size for array, size in zip(arrays, sizes, strict=True)], sizes)
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    if len(first) == len(flat):
        return
    merged = reshape(value, (*value.shape[:start], len(flat), *value.shape[start + rank :]))
    call.equal(merged, select_positions(merged, start, first[inverse.ravel()]))


def _read(base: ScaleField, places: Sequence[Place]) -> ScaleField:
    """Returns the field of ``tensor[places]``, places that are known."""
    for axis, place in enumerate(places):
        if isinstance(place, slice):
            base = take_slice(base, axis, place)
    arrays = [place if isinstance(place, np.ndarray) else None for place in places]
    if all(array is None for array in arrays):
        return base
    return index(base, arrays, shape_at(base.shape, [p if isinstance(p, np.ndarray) else None for p in places]))


def write_known(call: Call, base: ScaleField | AnyField, value: ScaleField | AnyField, places: list[Place], how: str) -> Any:
    """Replaces known entries (`how` is ""), or combines them with their former values; returns the field."""
    shape = base.shape
    if any(isinstance(place, np.ndarray) and place.size == 0 for place in places):
        return base
    value = _aligned(value, shape_at(shape, places))
    if how and isinstance(value, AnyField):
        # Adding zeros changes nothing; infinities stay infinite.
        return base
    _tie_repeated(call, value, shape, places)
    if how and isinstance(base, ScaleField):
        call.equal(_read(base, places), value)  # type: ignore[arg-type]
    return _settled(call, base, value, places)


def write_somewhere(
    call: Call, base: ScaleField | AnyField, value: ScaleField | AnyField, axes: Sequence[int], touched: Sequence[Place], how: str
) -> Any:
    """Replaces or combines entries at unknown positions of `axes`; returns the field.

    Args:
        call: of the operator.
        base: the field of the tensor that is written to.
        value: the field of the written values, with the tensor's axes, of size 1 along `axes`.
        axes: along which it is not known where it is written; both fields are constant there.
        touched: on the other axes, which positions are written (slices); None: all.
        how: "" where entries are replaced.
    """
    if isinstance(value, AnyField):
        # Zeros carry the field of their neighbours.
        return base
    if isinstance(base, ScaleField):
        inside = call.constant(_read(base, touched), axes)
        value = same_field(call, [inside, value], inside.shape)  # type: ignore[assignment]
    return _settled(call, base, ScaleField(shape_at(base.shape, touched), value.terms), touched)


# --- the operators ----------------------------------------------------------------------------------------------------


@scale_rule("aten::index_put", "aten::_unsafe_index_put", family="structural")
def index_put(call: Call) -> Any:
    """x[i, j, ...] = y, or += y."""
    if not is_floating(call.output):
        return zero_field(call)
    base, value, shape = _value(call, "self"), _value(call, "values"), call.shape("self")
    how = "add" if call["accumulate"] else ""
    known = named_by(call, "indices", len(shape))
    if known is not None:
        arrays = [place for place in known if place is not None]
        wide = iter(np.broadcast_arrays(*arrays)) if arrays else iter(())
        return write_known(call, base, value, [None if place is None else next(wide) for place in known], how)
    indexed, start, rank = unknown_block(call.fakes["indices"])
    base = call.open_if_unwritten("self", base) if not how else base
    if isinstance(value, AnyField):
        return base
    rest = [size for axis, size in enumerate(shape) if axis not in indexed]
    aligned = _aligned(value, (*rest[:start], *([1] * rank), *rest[start:]))
    constant = call.constant(aligned, range(start, start + rank))  # type: ignore[arg-type]
    kept = reshape_block(constant, start, rank, indexed, shape)
    return write_somewhere(call, base, kept, indexed, [None] * len(shape), how)


def reshape_block(field: ScaleField, start: int, rank: int, indexed: Sequence[int], shape: tuple[int, ...]) -> ScaleField:
    """Returns a field that is constant along a block of axes, with the axes of the tensor, constant along `indexed`."""

    def place(ids: Any) -> Any:
        sizes = iter([*ids.shape[:start], *ids.shape[start + rank :]])
        return ids.reshape([1 if axis in indexed else next(sizes) for axis in range(len(shape))])

    return ScaleField(shape, tuple((c, place(ids)) for c, ids in field.terms))


def _how(call: Call) -> str | None:
    """Returns how values are combined with the former ones: "" (they replace them), "add", "prod"; None for an unknown way."""
    name, reduce = call.operator.removeprefix("aten::"), call["reduce"]
    if reduce in ("multiply", "prod"):
        return "prod"
    if name in ("scatter_add", "index_add") or reduce in _ADDS:
        return "" if call["include_self"] is False else "add"
    return "" if reduce is None else None


@scale_rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce", family="structural")
def scatter(call: Call) -> Any:
    """Each value goes to a position of its own along one axis."""
    if not is_floating(call.output):
        return zero_field(call)
    shape, counts = call.shape("self"), call.shape("index")
    name = "src" if "src" in call.arguments else "value"
    base, value, how = _value(call, "self"), _value(call, name), _how(call)
    if how is None or not shape or not counts:
        return _all_alike(call, base, value)
    axis = call["dim"] % len(shape)
    if name == "src" and isinstance(value, ScaleField):
        for k, size in enumerate(counts):
            value = take_slice(value, k, slice(0, size)) if size < value.shape[k] else value
    known = call.constants("index", None)
    found = None if known is None else along_one_axis(positions_of(known), axis, shape)
    if how == "prod":
        return _products(call, base, value)
    if found is not None:
        places, order = found
        value = permute(value, order) if isinstance(value, ScaleField) and len(value.shape) == len(order) else value
        return write_known(call, base, value, places, how)
    base = call.open_if_unwritten("self", base) if not how else base
    if isinstance(value, AnyField):
        return base
    touched: list[Place] = [None if k == axis or size == shape[k] else slice(0, size) for k, size in enumerate(counts)]
    value = align(value, shape) if len(value.shape) != len(shape) else value
    return write_somewhere(call, base, call.constant(value, [axis]), [axis], touched, how)


def _products(call: Call, base: ScaleField | AnyField, value: ScaleField | AnyField) -> Any:
    """Returns the field of products of written and former values: the written ones are held, unless they meet zeros."""
    outside = call["include_self"] is False
    if isinstance(value, AnyField) or (isinstance(base, AnyField) and not outside):
        return base
    call.zero(value)
    if outside and isinstance(base, ScaleField):
        # The former value is dropped where something is written.
        call.zero(base)
    return ScaleField(base.shape) if outside else base


def _all_alike(call: Call, base: ScaleField | AnyField, value: ScaleField | AnyField) -> Any:
    """Returns the field by the plainest law: one for all written and former values."""
    fields = [
        reshape(ScaleField((1,) * len(f.shape), call.constant(f, range(len(f.shape))).terms), ())
        for f in (base, value)
        if isinstance(f, ScaleField)
    ]
    total = same_field(call, fields, ())
    if isinstance(total, AnyField):
        return AnyField(call.out_shape)
    return align(total, call.out_shape)  # type: ignore[arg-type]


@scale_rule("aten::index_add", "aten::index_copy", "aten::index_reduce", "aten::index_fill", family="structural")
def index_add(call: Call) -> Any:
    """Slices at positions of one axis are added, copied, reduced or filled."""
    if not is_floating(call.output):
        return zero_field(call)
    shape = call.shape("self")
    name = "value" if "value" in call.arguments else "source"
    base, value, how = _value(call, "self"), _value(call, name), _how(call)
    if how is None or not shape:
        return _all_alike(call, base, value)
    if call["alpha"] == 0:
        return base
    axis = call["dim"] % len(shape)
    if how == "prod":
        return _products(call, base, value)
    known = call.constants("index", None)
    if name == "source" and isinstance(value, ScaleField) and not value.shape:
        value = reshape(value, (1,) * len(shape))
    if known is not None:
        places: list[Place] = [None] * len(shape)
        places[axis] = positions_of(known).ravel()
        return write_known(call, base, value, places, how)
    base = call.open_if_unwritten("self", base) if not how else base
    if isinstance(value, AnyField):
        return base
    return write_somewhere(call, base, call.constant(align(value, shape), [axis]), [axis], [None] * len(shape), how)


@scale_rule("aten::select_scatter", "aten::slice_scatter", "aten::diagonal_scatter", family="structural")
def slice_scatter(call: Call) -> Any:
    """A slice of the tensor is replaced."""
    if not is_floating(call.output):
        return zero_field(call)
    shape, base, value = call.shape("self"), _value(call, "self"), _value(call, "src")
    places: list[Place] = [None] * len(shape)
    if call.operator == "aten::diagonal_scatter":
        first, second = (call[name] % len(shape) for name in ("dim1", "dim2"))
        length, offset = call.shape("src")[-1], call["offset"] or 0
        places[first], places[second] = np.arange(length) + max(0, -offset), np.arange(length) + max(0, offset)
        if isinstance(value, ScaleField):
            start, _, _ = block_of(places)
            rest = list(range(len(shape) - 2))
            value = permute(value, [*rest[:start], len(shape) - 2, *rest[start:]])
    elif call.operator == "aten::select_scatter":
        axis = call["dim"] % len(shape)
        position = call["index"] % shape[axis]
        places[axis] = slice(position, position + 1)
        if isinstance(value, ScaleField):
            value = reshape(value, (*value.shape[:axis], 1, *value.shape[axis:]))
    else:
        places[(call["dim"] or 0) % len(shape)] = slice(call["start"], call["end"], call["step"])
    return write_known(call, base, value, places, "")


@scale_rule("aten::masked_scatter", family="structural")
def masked_scatter(call: Call) -> Any:
    """Entries where a mask holds are replaced by those of a source, in their order."""
    if not is_floating(call.output):
        return zero_field(call)
    base, value, shape = _value(call, "self"), _value(call, "source"), call.shape("self")
    if isinstance(value, AnyField):
        return base
    rows = call.repeated_axes("mask", shape)
    # Where the mask is the same along the last axes, whole rows are taken from the source, whose last axes are the same.
    free = 0
    while (
        free < min(len(shape), len(value.shape)) and len(shape) - 1 - free in rows and value.shape[-1 - free] == shape[-1 - free]
    ):
        free += 1
    constant = call.constant(value, range(len(value.shape) - free))
    axes = list(range(len(shape) - free))
    kept = ScaleField(
        shape, tuple((c, ids.reshape((1,) * len(axes) + ids.shape[ids.ndim - free :])) for c, ids in constant.terms)
    )
    return write_somewhere(call, base, kept, axes, [None] * len(shape), "")

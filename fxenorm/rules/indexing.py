"""Reading by index: with known positions entries move; with unknown ones the field is constant along the indexed axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..field import AnyField, Ids, ScaleField
from ..field.structure import broadcast, index, permute, reshape, select_positions, take_slice
from .call import Call, Field, is_floating
from .laws import move, positions_of, reduce, zero_field
from .positions import LARGEST, along_one_axis, named_by, unknown_block
from .registry import scale_rule


@scale_rule("aten::index.Tensor", family="structural")
def index_rule(call: Call) -> Any:
    """y = x[i, j, ...]: by position where the indices are known, else constant along the indexed axes."""
    if not is_floating(call.fakes["self"]):
        return zero_field(call)
    shape = call.out_shape
    known = named_by(call, "indices", len(call.shape("self")))
    if known is None:
        return _unknown(call, shape)
    indexed = [(axis, positions) for axis, positions in enumerate(known) if positions is not None]
    backward = None
    if len(indexed) == 1 and _names_all(*indexed[0], call.shape("self")):
        backward = _gathered_back(call, *indexed[0])
    return move(call, call["self"], shape, lambda f: index(f, known, shape), backward)


def _names_all(axis: int, positions: Ids, shape: tuple[int, ...]) -> bool:
    """Whether the positions are all that the axis has."""
    return len(np.unique(positions % max(shape[axis], 1))) == shape[axis]


def _gathered_back(call: Call, axis: int, positions: Ids) -> Callable[[ScaleField], ScaleField]:
    """Returns the inverse of a gather that reads every position of an axis; places that are read twice carry one field."""
    shape = call.shape("self")
    places = positions.ravel() % shape[axis]
    _, first = np.unique(places, return_index=True)

    def backward(wanted: ScaleField) -> ScaleField:
        flat = reshape(wanted, (*shape[:axis], len(places), *shape[axis + 1 :]))
        table = select_positions(flat, axis, first)
        call.equal(select_positions(table, axis, places), flat)
        return table

    return backward


def _unknown(call: Call, shape: tuple[int, ...]) -> Field:
    """Requires a constant field along every indexed axis, where an index is not known before the run."""
    if isinstance(call["self"], AnyField):
        return AnyField(shape)
    indexed, start, rank = unknown_block(call.fakes["indices"])
    old = call.shape("self")
    kept = [k for k in range(len(old)) if k not in indexed]

    def forward(f: ScaleField) -> ScaleField:
        def place(ids: Any) -> Any:
            rest = ids.reshape([ids.shape[k] for k in kept])
            return rest.reshape((*rest.shape[:start], *(1,) * rank, *rest.shape[start:]))

        return ScaleField(shape, tuple((c, place(ids)) for c, ids in call.constant(f, indexed).terms))

    def backward(wanted: ScaleField) -> ScaleField:
        constant = call.constant(wanted, range(start, start + rank))

        def place(ids: Any) -> Any:
            sizes = iter([*ids.shape[:start], *ids.shape[start + rank :]])
            return ids.reshape([1 if k in indexed else next(sizes) for k in range(len(old))])

        return ScaleField(old, tuple((c, place(ids)) for c, ids in constant.terms))

    return move(call, call["self"], shape, forward, backward)


@scale_rule("aten::index_select", family="structural")
def index_select(call: Call) -> Field:
    """y = x at the given positions of one axis."""
    axis = call["dim"] % max(len(call.shape("self")), 1)
    value = call.constants("index", None)
    if value is None:
        return _one_axis(call, axis)
    positions = positions_of(value).ravel()
    return move(call, call["self"], call.out_shape, lambda f: select_positions(f, axis, positions))


def _one_axis(call: Call, axis: int) -> Field:
    """Indexed along one axis by unknown positions: the field is constant along it."""
    if isinstance(call["self"], AnyField):
        return AnyField(call.out_shape)
    return ScaleField(call.out_shape, call.constant(call.field("self"), [axis]).terms)


@scale_rule("aten::gather", "aten::take_along_dim", family="structural")
def gather(call: Call) -> Any:
    """Entries picked along one axis, each by a position of its own; where that is not known the field is constant along it."""
    if not is_floating(call.fakes["self"]):
        return zero_field(call)
    if isinstance(call["self"], AnyField):
        return AnyField(call.out_shape)
    if call["dim"] is None:
        return _flat_places(call, "indices")
    shape, new = call.shape("self"), call.out_shape
    axis = call["dim"] % max(len(shape), 1)
    index_name = "index" if "index" in call.arguments else "indices"
    known = call.constants(index_name, None)
    if known is not None and shape and known.numel():
        # take_along_dim broadcasts the index.
        found = along_one_axis(np.broadcast_to(positions_of(known), new), axis, shape)
        if found is not None:
            return _gathered(call.field("self"), *found, new)
    field = call.constant(call.field("self"), [axis])
    for k, size in enumerate(new):
        # The index may be smaller than the tensor on the other axes; it then reads their first positions.
        field = take_slice(field, k, slice(0, size)) if k != axis and size < field.shape[k] else field
    return ScaleField(new, field.terms)


def _gathered(field: ScaleField, places: list[Any], order: list[int], shape: tuple[int, ...]) -> ScaleField:
    """Returns the entries at known places, with the axes of the index."""
    for axis, place in enumerate(places):
        field = take_slice(field, axis, place) if isinstance(place, slice) else field
    arrays = [place if isinstance(place, np.ndarray) else None for place in places]
    picked = index(field, arrays, [shape[k] for k in order])
    return permute(picked, [int(k) for k in np.argsort(order)])


def _flat_places(call: Call, name: str) -> Field:
    """Entries picked by their place in the flattened tensor."""
    value, size = call.field("self"), math.prod(call.shape("self"))
    known = call.constants(name, None)
    if known is None or size > LARGEST:
        return broadcast(reduce(call, value, range(len(value.shape)), ()), call.out_shape)  # type: ignore[arg-type]
    return index(reshape(value, (size,)), [positions_of(known)], call.out_shape)


@scale_rule("aten::masked_select", "aten::take", family="structural")
def masked_select(call: Call) -> Field:
    """Entries by their place or by a mask; one field for all where these are not known."""
    if isinstance(call["self"], AnyField):
        return AnyField(call.out_shape)
    if call.operator == "aten::take":
        return _flat_places(call, "index")
    value = call.field("self")
    known = call.constants("mask", None)
    if known is not None and value.terms:
        wide = np.broadcast_shapes(value.shape, tuple(known.shape))
        places = np.broadcast_to(positions_of(known) != 0, wide).nonzero()
        return index(broadcast(value, wide), list(places), call.out_shape)
    return broadcast(reduce(call, value, range(len(value.shape)), ()), call.out_shape)  # type: ignore[arg-type]


@scale_rule("aten::unfold", family="structural")
def unfold(call: Call) -> Field:
    """Windows along one axis as a new last axis."""
    axis, size, step = call["dimension"] % max(len(call.shape("self")), 1), call["size"], call["step"]
    shape = call.out_shape
    count = shape[axis]
    windows = (np.arange(count)[:, None] * step + np.arange(size)[None, :]).ravel()

    def forward(f: ScaleField) -> ScaleField:
        picked = select_positions(f, axis, windows)
        split = reshape(picked, (*picked.shape[:axis], count, size, *picked.shape[axis + 1 :]))
        order = [*range(axis + 1), *range(axis + 2, len(split.shape)), axis + 1]
        return ScaleField(shape, tuple((c, ids.transpose(order)) for c, ids in split.terms))

    return move(call, call["self"], shape, forward)


@scale_rule("aten::im2col", family="structural")
def im2col(call: Call) -> Field:
    """Windows of positions, channels outermost: y[n, (c, k), l]; constant along the positions."""
    shape, new = call.shape("self"), call.out_shape
    if isinstance(call["self"], AnyField):
        return AnyField(new)
    field = call.constant(call.field("self"), [len(shape) - 2, len(shape) - 1])
    channels, taps = shape[-3], new[-2] // shape[-3]
    wide = ScaleField((*shape[:-3], channels, taps, new[-1]), field.terms)
    return reshape(wide, new)


@scale_rule("aten::col2im", family="structural")
def col2im(call: Call) -> Field:
    """Overlapping windows are summed: y[n, c, h, w] from x[n, (c, k), l]; constant along taps and places."""
    shape, new = call.shape("self"), call.out_shape
    if isinstance(call["self"], AnyField):
        return AnyField(new)
    channels = new[-3]
    wide = reshape(call.field("self"), (*shape[:-2], channels, shape[-2] // channels, shape[-1]))
    constant = call.constant(wide, [len(wide.shape) - 2, len(wide.shape) - 1])
    return ScaleField(new, constant.terms)

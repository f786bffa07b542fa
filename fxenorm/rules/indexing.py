"""Indexing: with known positions entries move; with unknown ones the field is constant along the indexed axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..field import AnyField, Ids, ScaleField
from ..field.structure import broadcast, index, reshape, select_positions, take_slice
from .call import Call, Field, is_floating
from .laws import barrier, move, number, positions_of, reduce, same_field, zero_field
from .registry import scale_rule


@scale_rule("aten::index.Tensor", family="structural")
def index_rule(call: Call) -> Any:
    """y = x[i, j, ...]."""
    if not is_floating(call.fakes["self"]):
        return zero_field(call)
    shape, fakes = call.out_shape, call.fakes["indices"]
    known: list[Any] = []
    for position, fake in enumerate(fakes):
        value = None if fake is None else call.constants("indices", position)
        if fake is not None and value is None:
            return _unknown(call, shape)
        if value is not None and value.dtype in (torch.bool, torch.uint8):
            known += [positions_of(places) for places in value.nonzero(as_tuple=True)]
        else:
            known.append(None if value is None else positions_of(value))
    known += [None] * (len(call.shape("self")) - len(known))
    indexed = [axis for axis, positions in enumerate(known) if positions is not None]
    backward = None
    if len(indexed) == 1 and len(np.unique(known[indexed[0]] % call.shape("self")[indexed[0]])) == call.shape("self")[indexed[0]]:
        backward = _gathered_back(call, indexed[0], known[indexed[0]])
    return move(call, call["self"], shape, lambda f: index(f, known, shape), backward)


def _gathered_back(call: Call, axis: int, positions: Ids) -> Callable[[ScaleField], ScaleField]:
    """The inverse of a gather that reads every position of an axis: where it reads one twice, both carry the same field."""
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
    """Indexed by what is not known before the run: constant along every indexed axis."""
    if isinstance(call["self"], AnyField):
        return AnyField(shape)
    indexed, axis = [], 0
    ranks = []
    for fake in call.fakes["indices"]:
        width = fake.ndim if fake is not None and fake.dtype in (torch.bool, torch.uint8) else 1
        if fake is not None:
            indexed += list(range(axis, axis + width))
            ranks.append(1 if width > 1 or fake.dtype == torch.bool else fake.ndim)
        axis += width
    rank = max(ranks)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    start = indexed[0] if adjacent else 0
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
    """Entries picked along one axis, each by a position of its own: the field is constant along it."""
    if call["dim"] is None or not is_floating(call.fakes["self"]):
        return barrier(call, "take_along_dim without an axis") if call["dim"] is None else zero_field(call)
    shape, new = call.shape("self"), call.out_shape
    axis = call["dim"] % max(len(shape), 1)
    if isinstance(call["self"], AnyField):
        return AnyField(new)
    field = call.constant(call.field("self"), [axis])
    for k, size in enumerate(new):
        # The index may be smaller than the tensor on the other axes; it then reads their first positions.
        field = take_slice(field, k, slice(0, size)) if k != axis and size < field.shape[k] else field
    return ScaleField(new, field.terms)


@scale_rule("aten::masked_select", "aten::take", family="structural")
def masked_select(call: Call) -> Field:
    """Entries in unknown number: one field for all."""
    value = reduce(call, call["self"], range(len(call.shape("self"))), ())
    if isinstance(value, AnyField):
        return AnyField(call.out_shape)
    return broadcast(value, call.out_shape)  # type: ignore[arg-type]


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


@scale_rule(
    "aten::index_put", "aten::scatter", "aten::scatter_add", "aten::scatter_reduce", "aten::index_add", "aten::index_copy",
    "aten::index_fill", "aten::masked_scatter", "aten::select_scatter", "aten::slice_scatter", "aten::diagonal_scatter",
    family="structural",
)  # fmt: skip
def index_put(call: Call) -> Any:
    """Some entries are replaced by, or get added, values: one field for all of what is written and what it is written to."""
    if not is_floating(call.output):
        return zero_field(call)
    if call["reduce"] in ("multiply", "prod"):
        return barrier(call, "products of what is written with what was there are held")
    fields: list[Field] = []
    for name in ("self", "values", "src", "source", "value"):
        if call[name] is not None:
            value = number(call[name])
            fields.append(value if isinstance(value, AnyField) else call.settle(value))
    settled = [field for field in fields if isinstance(field, ScaleField)]
    if not settled:
        return AnyField(call.out_shape)
    flat = [call.constant(field, range(len(field.shape))) for field in settled]
    ones = [ScaleField((), tuple((c, ids.reshape(())) for c, ids in field.terms)) for field in flat]
    return broadcast(same_field(call, ones, ()), call.out_shape)  # type: ignore[arg-type]

"""Structural operators: entries move, values do not; the operator is run on the field itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..field import AnyField, ParameterView, ScaleField
from ..field.structure import broadcast, concatenate, flip, index, permute, repeat, reshape, roll, select_positions
from .call import Call, Field
from .laws import barrier, move, positions_of, zero_field
from .operands import axis_of
from .registry import family, scale_rule


def reshaped(call: Call) -> Any:
    """The entries keep their order; only the shape changes."""
    if call["dtype"] is not None:
        return barrier(call, "its bits are read as another type")
    if call["tensors"] is not None:
        return [_one_reshaped(call, value, tuple(new.shape)) for value, new in zip(call["tensors"], call.output, strict=True)]
    return _one_reshaped(call, call["self"], call.out_shape)


def _one_reshaped(call: Call, value: Field, new: tuple[int, ...]) -> Field:
    """Returns one tensor in a new shape."""
    old = value.shape
    return move(call, value, new, lambda f: reshape(f, new), lambda f: reshape(f, old))


family(
    "structural",
    reshaped,
    [
        "aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::squeeze",
        "aten::unsqueeze", "aten::view_as", "aten::reshape_as", "aten::ravel", "aten::atleast_1d", "aten::atleast_2d",
        "aten::atleast_3d", "aten::_reshape_alias",
    ],
)  # fmt: skip


def _permuted(call: Call, value: Field, order: Sequence[int]) -> Field:
    """Returns `value` with its axes in a new order."""
    inverse = [int(k) for k in np.argsort(order)]
    shape = [value.shape[axis] for axis in order]
    return move(call, value, shape, lambda f: permute(f, order), lambda f: permute(f, inverse))


@scale_rule("aten::permute", family="structural")
def permute_rule(call: Call) -> Field:
    """y[i, j, ...] = x[j, ..., i]: the axes come in a new order."""
    return _permuted(call, call["self"], [axis_of(call, axis) for axis in call["dims"]])


@scale_rule(
    "aten::transpose",
    "aten::swapaxes",
    "aten::swapdims",
    "aten::t",
    "aten::numpy_T",
    "aten::mT",
    "aten::adjoint",
    family="structural",
)
def transpose(call: Call) -> Field:
    """Two axes change places (all axes, for numpy's T)."""
    rank = len(call.shape("self"))
    order = list(range(rank))
    if call.operator == "aten::numpy_T":
        return _permuted(call, call["self"], order[::-1])
    pair = [call[name] for name in ("dim0", "dim1", "axis0", "axis1") if call[name] is not None] or [-2, -1]
    if rank >= 2:
        first, second = (axis_of(call, axis) for axis in pair)
        order[first], order[second] = order[second], order[first]
    return _permuted(call, call["self"], order)


@scale_rule("aten::movedim", "aten::moveaxis", family="structural")
def movedim(call: Call) -> Field:
    """Axes go to new places, the others keep their order."""
    source, target = call["source"], call["destination"]
    source = [source] if isinstance(source, int) else source
    target = [target] if isinstance(target, int) else target
    rank = len(call.shape("self"))
    places = {axis_of(call, t): axis_of(call, s) for s, t in zip(source, target, strict=True)}
    rest = iter(axis for axis in range(rank) if axis not in places.values())
    return _permuted(call, call["self"], [places[k] if k in places else next(rest) for k in range(rank)])


@scale_rule("aten::expand", "aten::expand_as", "aten::broadcast_to", family="structural")
def expand(call: Call) -> Field:
    """Axes of size 1 are repeated."""
    old, new = call.shape("self"), call.out_shape

    def back(wanted: ScaleField) -> ScaleField:
        padded = (1,) * (len(new) - len(old)) + old
        constant = call.constant(wanted, [axis for axis, size in enumerate(padded) if size == 1])
        return reshape(ScaleField(padded, constant.terms), old)

    return move(call, call["self"], new, lambda f: broadcast(f, new), back)


@scale_rule("aten::broadcast_tensors", family="structural")
def broadcast_tensors(call: Call) -> list[Field]:
    """Each tensor is repeated along new or size-1 axes."""
    shapes = [tuple(value.shape) for value in call.output]
    return [broadcast(call.settle(value), shape) for value, shape in zip(call["tensors"], shapes, strict=True)]


@scale_rule("aten::meshgrid", family="structural")
def meshgrid(call: Call) -> list[Field]:
    """Vector k is repeated along every axis but its own."""
    found: list[Field] = []
    swapped = call["indexing"] == "xy" and len(call["tensors"]) > 1
    for position, (value, grid) in enumerate(zip(call["tensors"], call.output, strict=True)):
        axis = 1 - position if swapped and position < 2 else position
        shape = tuple(grid.shape)
        along = tuple(size if k == axis else 1 for k, size in enumerate(shape))
        found.append(broadcast(reshape(call.settle(value), along), shape))
    return found


@scale_rule("aten::rot90", family="structural")
def rot90(call: Call) -> Field:
    """A turn in the plane of two axes: flips and a transposition."""
    shape, turns = call.shape("self"), call["k"] % 4
    first, second = (axis_of(call, axis) for axis in call["dims"])
    order = list(range(len(shape)))
    order[first], order[second] = second, first

    def turn(f: ScaleField, times: int) -> ScaleField:
        for _ in range(times):
            f = flip(permute(f, order), [first])
        return f

    return move(call, call["self"], call.out_shape, lambda f: turn(f, turns), lambda f: turn(f, 4 - turns))


@scale_rule("aten::diagonal", "aten::diag_embed", family="structural")
def diagonal(call: Call) -> Field:
    """y[.., i] = x[.., i, .., i + offset]; embedded, the other entries are 0, which carries any field."""
    names = [name for name in ("dim1", "dim2", "axis1", "axis2") if name in call.arguments]
    embedded = call.operator == "aten::diag_embed"
    rank = len(call.out_shape if embedded else call.shape("self"))
    first, second = (axis_of(call, call[name], rank) for name in names)
    offset, new = call["offset"] or 0, call.out_shape
    rest = [axis for axis in range(rank) if axis not in (first, second)]
    if embedded:
        # Row i of the matrix carries the field of entry i (of those above it, for a diagonal that starts lower).
        length, side = call.shape("self")[-1], new[first]
        source = np.clip(np.arange(side) - max(0, -offset), 0, length - 1)

        def embed(f: ScaleField) -> ScaleField:
            rows = select_positions(f, len(f.shape) - 1, source)
            wide = broadcast(reshape(rows, (*rows.shape, 1)), (*rows.shape, side))
            return permute(wide, [int(k) for k in np.argsort([*rest, first, second])])

        return move(call, call["self"], new, embed)
    rows_at, columns_at = np.arange(new[-1]) + max(0, -offset), np.arange(new[-1]) + max(0, offset)

    def take(f: ScaleField) -> ScaleField:
        # Advanced indexing by two adjacent arrays puts the new axis in their place, which is the end.
        moved = permute(f, [*rest, first, second])
        return index(moved, [*([None] * len(rest)), rows_at, columns_at], new)

    return move(call, call["self"], new, take)


@scale_rule("aten::repeat", "aten::tile", family="structural")
def repeat_rule(call: Call) -> Field:
    """The tensor is laid side by side."""
    new = call.out_shape
    counts = list(call["repeats"] if call["repeats"] is not None else call["dims"])
    counts = [1] * (len(new) - len(counts)) + counts
    return move(call, call["self"], new, lambda f: repeat(f, counts))


@scale_rule("aten::repeat_interleave.Tensor", family="constant")
def repeated_numbers(call: Call) -> Any:
    """Position k as often as the k-th integer says."""
    return zero_field(call)


@scale_rule("aten::repeat_interleave.self_Tensor", family="structural")
def repeat_interleave_each(call: Call) -> Field:
    """Each position is repeated in place, each a number of times of its own."""
    new, axis, rank = call.out_shape, call["dim"], len(call.shape("self"))
    place = 0 if axis is None or rank == 0 else axis % rank
    value = call["self"] if axis is not None and rank else _one_reshaped(call, call["self"], (int(np.prod(call.shape("self"))),))
    known = call.constants("repeats", None)
    if known is None:
        return move(call, value, new, lambda f: ScaleField(new, call.constant(f, [place]).terms))
    counts = np.broadcast_to(positions_of(known), (value.shape[place],))
    return move(call, value, new, lambda f: select_positions(f, place, np.repeat(np.arange(len(counts)), counts)))


@scale_rule("aten::repeat_interleave.self_int", family="structural")
def repeat_interleave(call: Call) -> Field:
    """Each position is repeated in place."""
    new, count, axis = call.out_shape, call["repeats"], call["dim"]

    def forward(f: ScaleField) -> ScaleField:
        flat = reshape(f, (int(np.prod(f.shape)),)) if axis is None else f
        place = 0 if axis is None else axis % len(f.shape)
        return select_positions(flat, place, np.repeat(np.arange(flat.shape[place]), count))

    return move(call, call["self"], new, forward)


@scale_rule("aten::cat", "aten::concat", "aten::concatenate", "aten::stack", "aten::hstack", "aten::vstack", family="structural")
def cat(call: Call) -> Field:
    """Tensors are laid side by side along one axis. Zeros among them get variables of their own, tied to nothing."""
    values, shape = call["tensors"], call.out_shape
    call.roles["tensors"] = "bias"
    fakes = call.fakes["tensors"]
    stacked = call.operator == "aten::stack"
    if call.operator in ("aten::hstack", "aten::vstack"):
        axis = 1 if call.operator == "aten::hstack" and len(shape) > 1 else 0
        stacked = call.operator == "aten::vstack" and len(fakes[0].shape) == 1
    else:
        axis = axis_of(call, call["dim"] or 0, len(shape))
    kept = [(v, tuple(f.shape)) for v, f in zip(values, fakes, strict=True) if stacked or tuple(f.shape) != (0,)]
    if all(isinstance(value, AnyField) for value, _ in kept):
        return AnyField(shape)
    # A class token or other parameter takes the field that its neighbours carry where all positions carry the same.
    known = [call_field for call_field, _ in kept if isinstance(call_field, ScaleField)]
    settled: list[ScaleField | None] = []
    for value, part_shape in kept:
        if isinstance(value, ParameterView) and known and not any(f.varies_along(axis) for f in known) and not stacked:
            call.give(value, ScaleField(part_shape, _neighbour(call, known[0], value, axis).terms))
            value = call.parameters.look(value)
        settled.append(None if isinstance(value, AnyField) else call.settle(value))
    # Zeros vary wherever their neighbours do.
    varying = {k for part in settled if part is not None for k in range(len(part.shape)) if part.varies_along(k)}
    parts = []
    for part, (_, part_shape) in zip(settled, kept, strict=True):
        if part is None:
            part = call.equations.fresh(part_shape, sorted(varying if stacked else varying | {axis}))
        parts.append(reshape(part, (*part.shape[:axis], 1, *part.shape[axis:])) if stacked else part)
    return concatenate(parts, axis)


def _neighbour(call: Call, field: ScaleField, view: ParameterView, axis: int) -> ScaleField:
    """Returns the neighbour's field on the parameter's shape: constant on every axis where the parameter has size 1."""
    del axis
    return call.constant(field, [k for k, size in enumerate(view.shape) if size == 1])


@scale_rule("aten::flip", "aten::fliplr", "aten::flipud", family="structural")
def flip_rule(call: Call) -> Field:
    """The order along axes is reversed."""
    default = {"aten::fliplr": [1], "aten::flipud": [0]}
    axes = [axis_of(call, axis) for axis in (call["dims"] or default[call.operator])]
    return move(call, call["self"], call.out_shape, lambda f: flip(f, axes), lambda f: flip(f, axes))


@scale_rule("aten::roll", family="structural")
def roll_rule(call: Call) -> Field:
    """A cyclic shift along axes (of the flattened tensor where none are given)."""
    shape, shifts, axes = call.shape("self"), list(call["shifts"]), call["dims"]
    total = int(np.prod(shape))

    def shifted(sign: int) -> Callable[[ScaleField], ScaleField]:
        moves = [sign * shift for shift in shifts]
        if axes:
            return lambda f: roll(f, moves, [axis_of(call, axis) for axis in axes])
        return lambda f: reshape(roll(reshape(f, (total,)), moves, [0]), shape)

    return move(call, call["self"], shape, shifted(1), shifted(-1))


@scale_rule(
    "aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::channel_shuffle", "aten::native_channel_shuffle", family="structural"
)
def pixel_shuffle(call: Call) -> Field:
    """Blocks of channels become pixels, or pixels channels; a shuffle of channel groups."""
    old, new = call.shape("self"), call.out_shape
    lead = old[:-3]
    n = len(lead)
    if call.operator.endswith("channel_shuffle"):
        groups = call["groups"]
        lead, rest = old[:1], old[2:]
        middle, order = (*lead, groups, old[1] // groups, *rest), [0, 2, 1, *range(3, 1 + len(old))]
    elif call.operator == "aten::pixel_shuffle":
        r = call["upscale_factor"]
        middle, order = (*lead, new[-3], r, r, old[-2], old[-1]), [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    else:
        r = call["downscale_factor"]
        middle, order = (*lead, old[-3], new[-2], r, new[-1], r), [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    inverse = [int(k) for k in np.argsort(order)]
    swapped = tuple(middle[k] for k in order)
    return move(
        call,
        call["self"],
        new,
        lambda f: reshape(permute(reshape(f, middle), order), new),
        lambda f: reshape(permute(reshape(f, swapped), inverse), old),
    )


@scale_rule("aten::tril", "aten::triu", family="structural")
def tril(call: Call) -> Field:
    """Entries are kept or set to 0, which carries any field."""
    return call["self"] if isinstance(call["self"], AnyField) else ScaleField(call.out_shape, call.field("self").terms)

"""Structural operators on scale fields: entries move, values do not, so the operator is run on the variable ids themselves.

All functions act term by term on ids of size 1 along constant axes, and never expand an axis that is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from .scale_field import FIXED, Ids, ScaleField, Term, align, compress, simplify

__all__ = ["broadcast", "concatenate", "flip", "index", "permute", "repeat", "reshape", "roll", "select_positions", "take_slice"]


Sizes = tuple[int, ...]
"""A shape."""


def _map_terms(field: ScaleField, shape: Sequence[int], move: Callable[[Ids], Ids]) -> ScaleField:
    """Applies `move` to the ids of every term; the result has `shape`."""
    return ScaleField(tuple(shape), simplify((c, move(ids)) for c, ids in field.terms))


@lru_cache(maxsize=4096)
def _reshape_blocks(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Cuts a reshape into the smallest blocks of neighbouring axes with equal numbers of entries."""
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        old_axes, new_axes = [], []
        old_size = new_size = 1
        if i < len(old):
            old_axes.append(i)
            old_size *= old[i]
            i += 1
        if j < len(new):
            new_axes.append(j)
            new_size *= new[j]
            j += 1
        while old_size != new_size:
            if (old_size < new_size or j >= len(new)) and i < len(old):
                old_axes.append(i)
                old_size *= old[i]
                i += 1
            else:
                new_axes.append(j)
                new_size *= new[j]
                j += 1
        blocks.append((tuple(old_axes), tuple(new_axes)))
    return tuple(blocks)


@lru_cache(maxsize=4096)
def _reshape_sizes(ids: Sizes, old: Sizes, new: Sizes) -> tuple[Sizes, Sizes, tuple[int, ...]]:
    """Returns how ids go along when a tensor is reshaped.

    Args:
        ids: the shape of the ids.
        old, new: the shapes of the tensor.

    Returns:
        (the shape to which the ids are broadcast, that to which they are then reshaped, the axes along which they may be
        constant).
    """
    expanded, target = list(ids), [1] * len(new)
    check: list[int] = []
    for old_axes, new_axes in _reshape_blocks(old, new):
        if all(ids[axis] == 1 for axis in old_axes):
            continue
        for axis in old_axes:
            expanded[axis] = old[axis]
        for axis in new_axes:
            target[axis] = new[axis]
        check += new_axes if len(new_axes) > 1 else ()
    return tuple(expanded), tuple(target), tuple(check)


def _wide(ids: Ids, shape: Sizes) -> Ids:
    """Returns ids broadcast to a shape, which nearly always they have."""
    return ids if ids.shape == shape else np.broadcast_to(ids, shape)


def reshape(field: ScaleField, shape: Sequence[int]) -> ScaleField:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze.

    Example:
        >>> import numpy as np
        >>> x = ScaleField((2, 3, 4), ((1, np.arange(3).reshape(1, 3, 1)),))
        >>> reshape(x, (2, 12)).terms[0][1].tolist()
        [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]]
    """
    shape = tuple(shape)
    if field.is_zero or field.shape == shape or 0 in shape:
        return ScaleField(shape, field.terms if field.shape == shape else ())

    def move(ids: Ids) -> Ids:
        expanded, target, check = _reshape_sizes(ids.shape, field.shape, shape)
        return compress(_wide(ids, expanded).reshape(target), check)

    return _map_terms(field, shape, move)


def permute(field: ScaleField, order: Sequence[int]) -> ScaleField:
    """permute, transpose, movedim: axis k of the result is axis order[k]."""
    return _map_terms(field, [field.shape[axis] for axis in order], lambda ids: ids.transpose(order))


def broadcast(field: ScaleField, shape: Sequence[int]) -> ScaleField:
    """expand: axes of size 1 are repeated, which leaves ids of size 1 as they are."""
    return align(field, tuple(shape))


def take_slice(field: ScaleField, axis: int, selection: slice) -> ScaleField:
    """slice, narrow: a range of positions along one axis."""
    shape = list(field.shape)
    shape[axis] = len(range(*selection.indices(shape[axis])))
    window = (slice(None),) * axis + (selection,)
    return _map_terms(field, shape, lambda ids: ids if ids.shape[axis] == 1 else compress(ids[window], [axis]))


def select_positions(field: ScaleField, axis: int, positions: Ids) -> ScaleField:
    """index_select and every gather with known positions: position k of the result is positions[k]."""
    shape = list(field.shape)
    shape[axis] = len(positions)
    return _map_terms(field, shape, lambda ids: ids if ids.shape[axis] == 1 else compress(ids.take(positions, axis=axis), [axis]))


def flip(field: ScaleField, axes: Sequence[int]) -> ScaleField:
    """flip: the order along `axes` is reversed."""
    return _map_terms(field, field.shape, lambda ids: np.flip(ids, tuple(axes)))


def roll(field: ScaleField, shifts: Sequence[int], axes: Sequence[int]) -> ScaleField:
    """roll: a cyclic shift along `axes`."""

    def move(ids: Ids) -> Ids:
        for shift, axis in zip(shifts, axes, strict=True):
            ids = np.roll(ids, shift, axis)
        return ids

    return _map_terms(field, field.shape, move)


def repeat(field: ScaleField, repeats: Sequence[int]) -> ScaleField:
    """repeat (tile): the whole tensor is laid repeats[k] times along axis k; new axes come in front."""
    padded = align(field, (1,) * (len(repeats) - len(field.shape)) + field.shape)
    shape = tuple(size * count for size, count in zip(padded.shape, repeats, strict=True))

    def move(ids: Ids) -> Ids:
        return np.tile(ids, [1 if size == 1 else count for size, count in zip(ids.shape, repeats, strict=True)])

    return _map_terms(padded, shape, move)


def index(field: ScaleField, positions: Sequence[Ids | None], shape: Sequence[int]) -> ScaleField:
    """Advanced indexing by known integer arrays (None keeps an axis), with the result's `shape`."""
    indexed = [axis for axis, position in enumerate(positions) if position is not None]
    rank = max((positions[axis].ndim for axis in indexed), default=0)  # type: ignore[union-attr]

    def move(ids: Ids) -> Ids:
        key: list[slice | Ids] = [slice(None)] * ids.ndim
        constant = all(ids.shape[axis] == 1 for axis in indexed)
        for axis in indexed:
            position = positions[axis]
            if constant:
                key[axis] = np.zeros((1,) * rank, dtype=np.int64)
            else:
                key[axis] = np.zeros_like(position) if ids.shape[axis] == 1 else position  # type: ignore[assignment]
        return compress(ids[tuple(key)])

    return _map_terms(field, shape, move)


def concatenate(fields: Sequence[ScaleField], axis: int) -> ScaleField:
    """cat along `axis`: the terms of the parts are laid side by side, first with first of the same coefficient.

    Example:
        >>> import numpy as np
        >>> a = ScaleField((2, 2), ((1, np.array([[0, 1]])),))
        >>> b = ScaleField((2, 1), ())
        >>> concatenate([a, b], 1).terms[0][1].tolist()
        [[0, 1, -1]]
    """
    sizes = [field.shape[axis] for field in fields]
    shape = list(fields[0].shape)
    shape[axis] = sum(sizes)
    ndim = len(shape)
    first = fields[0].terms
    if all(not f.varies_along(axis) and _same_terms(f.terms, first) for f in fields):
        return ScaleField(tuple(shape), first)
    coefficients = sorted({c for field in fields for c, _ in field.terms}, reverse=True)
    terms: list[Term] = []
    for coefficient in coefficients:
        columns = [[ids for c, ids in field.terms if c == coefficient] for field in fields]
        for slot in range(max(len(column) for column in columns)):
            blocks = [c[slot] if slot < len(c) else np.full((1,) * ndim, FIXED, dtype=np.int64) for c in columns]
            common = [max(block.shape[k] for block in blocks) for k in range(ndim)]
            parts = []
            for block, size in zip(blocks, sizes, strict=True):
                target = list(common)
                target[axis] = size
                parts.append(_wide(block, tuple(target)))
            terms.append((coefficient, np.concatenate(parts, axis=axis)))
    return ScaleField(tuple(shape), simplify(terms))


def _same_terms(a: Sequence[Term], b: Sequence[Term]) -> bool:
    """Whether two lists of terms are equal, term by term."""
    return len(a) == len(b) and all(
        ca == cb and (ia is ib or (ia.shape == ib.shape and np.array_equal(ia, ib)))
        for (ca, ia), (cb, ib) in zip(a, b, strict=True)
    )

"""Writing into a tensor, on scale fields: some entries take the field of a value, the others keep theirs or have none as yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .equations import Equations
from .scale_field import FIXED, AnyField, Ids, ScaleField, Term, compress, simplify

__all__ = ["GARBAGE", "OPEN", "SETTLED", "Patchwork", "Place", "block_of", "filled", "overlay", "patchwork_of", "shape_at"]

Place = slice | Ids | None
"""The written part of one axis: a range of positions, positions (arrays of several axes are read together), or all (None)."""

SETTLED, OPEN, GARBAGE = 0, 1, 2
"""States of an entry: its field is known; it is 0 or infinite and carries any; nobody has written it as yet."""

LARGEST = 1_000_000
"""Up to this many open entries each gets a variable of its own; above, those along an axis share one. A million ids are 8 MB,
and the solver holds a few arrays of that length."""


@dataclass(frozen=True, eq=False)
class Patchwork:
    """A tensor of which a part is written.

    Attributes:
        shape: the tensor's shape.
        terms: the field where it is settled.
        states: the state of each entry, of size 1 on axes along which it is constant.
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    states: NDArray[np.int8]


def patchwork_of(field: ScaleField | AnyField, state: int = OPEN) -> Patchwork:
    """Returns a tensor as it is before the first write; `state` is that of a tensor which carries any field."""
    ones = (1,) * len(field.shape)
    if isinstance(field, AnyField):
        return Patchwork(field.shape, (), np.full(ones, state, dtype=np.int8))
    return Patchwork(field.shape, field.terms, np.full(ones, SETTLED, dtype=np.int8))


def block_of(places: Sequence[Place]) -> tuple[int, int, list[int]]:
    """Returns the place of the axes of position arrays in the written value, as numpy and torch put them.

    Returns:
        (first axis of the block, number of its axes, for each axis of the tensor its axis in the value, -1 for one of the block).
    """
    indexed = [axis for axis, place in enumerate(places) if isinstance(place, np.ndarray)]
    rank = max((places[axis].ndim for axis in indexed), default=0)  # type: ignore[union-attr]
    adjacent = not indexed or indexed == list(range(indexed[0], indexed[-1] + 1))
    start = indexed[0] if indexed and adjacent else 0
    axes, following = [], 0
    for axis in range(len(places)):
        if axis in indexed:
            axes.append(-1)
            continue
        if indexed and following == start:
            following += rank
        axes.append(following)
        following += 1
    return start, rank, axes


def shape_at(shape: Sequence[int], places: Sequence[Place]) -> tuple[int, ...]:
    """Returns the shape of ``tensor[places]``, for a tensor of `shape`."""
    start, rank, axes = block_of(places)
    arrays = [place.shape for place in places if isinstance(place, np.ndarray)]
    block = np.broadcast_shapes(*arrays) if arrays else ()
    found = [0] * (rank + sum(axis >= 0 for axis in axes))
    found[start : start + rank] = block
    for size, place, axis in zip(shape, places, axes, strict=True):
        if axis >= 0:
            found[axis] = len(range(*place.indices(size))) if isinstance(place, slice) else size
    return tuple(found)


def overlay(base: Patchwork, value: Patchwork, places: Sequence[Place]) -> Patchwork:
    """`base` with the entries at `places` replaced by those of `value`, whose axes are those of ``tensor[places]``.

    Example:
        >>> import numpy as np
        >>> h = ScaleField((2, 2), ((1, np.array([[4, 5]])),))
        >>> written = overlay(patchwork_of(AnyField((2, 3))), patchwork_of(h), [None, slice(0, 2)])
        >>> written.terms[0][1].tolist(), written.states.tolist()
        ([[4, 5, -1]], [[0, 0, 1]])
    """
    if all(place is None for place in places):
        return Patchwork(base.shape, value.terms, value.states)
    states = _written(base.shape, base.states, value.states, places)
    terms: list[Term] = []
    for coefficient in sorted({c for c, _ in (*base.terms, *value.terms)}, reverse=True):
        olds, news = ([ids for c, ids in part.terms if c == coefficient] for part in (base, value))
        for slot in range(max(len(olds), len(news))):
            old = olds[slot] if slot < len(olds) else np.full((1,) * len(base.shape), FIXED, dtype=np.int64)
            new = news[slot] if slot < len(news) else np.full((1,) * len(value.shape), FIXED, dtype=np.int64)
            terms.append((coefficient, _written(base.shape, old, new, places)))
    return Patchwork(base.shape, simplify(terms), states)


def _written(shape: tuple[int, ...], old: NDArray[np.generic], new: NDArray[np.generic], places: Sequence[Place]) -> Any:
    """Returns one array of ids or states; axes that are written whole stay of size 1 where both are."""
    if old.size == new.size == 1 and old.item() == new.item():
        return old
    _, _, axes = block_of(places)
    target = [
        size if place is not None else max(old.shape[axis], new.shape[axes[axis]])
        for axis, (size, place) in enumerate(zip(shape, places, strict=True))
    ]
    result = np.broadcast_to(old, target).copy()
    result[tuple(slice(None) if place is None else place for place in places)] = new
    return compress(result)


def filled(patchwork: Patchwork, equations: Equations) -> ScaleField | AnyField:
    """Returns the field of the tensor as it is now: open entries get variables that are tied to nothing, unwritten ones stay.

    A new variable differs along every axis along which the states or the settled fields do.
    """
    states, terms = patchwork.states, patchwork.terms
    if (states == OPEN).all():
        return AnyField(patchwork.shape)
    if not (states == OPEN).any():
        return ScaleField(patchwork.shape, terms)
    sizes = list(np.broadcast_shapes(states.shape, *(ids.shape for _, ids in terms)))
    while math.prod(sizes) > LARGEST and any(s == 1 < n for s, n in zip(states.shape, sizes, strict=True)):
        widest = max((n, k) for k, (s, n) in enumerate(zip(states.shape, sizes, strict=True)) if s == 1)[1]
        sizes[widest] = 1
    open_places = np.broadcast_to(states == OPEN, sizes)
    ids = np.full(sizes, FIXED, dtype=np.int64)
    number = int(open_places.sum())
    ids[open_places] = np.arange(equations.count, equations.count + number, dtype=np.int64)
    equations.count += number
    return _merged(patchwork.shape, terms, ids)


def _merged(shape: tuple[int, ...], terms: tuple[Term, ...], ids: Ids) -> ScaleField:
    """Returns the settled terms and the new variables, in one term where that is possible."""
    for position, (coefficient, old) in enumerate(terms):
        if coefficient == 1:
            both = np.broadcast_arrays(old, ids)
            merged = (1, compress(np.where(both[1] == FIXED, both[0], both[1])))
            return ScaleField(shape, simplify((*terms[:position], merged, *terms[position + 1 :])))
    return ScaleField(shape, simplify((*terms, (1, compress(ids)))))

"""Exponents of one tensor in a normal form: as few and as small id arrays as possible, and the entries where they collide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Collisions", "Ids", "Terms", "collisions", "cycle_degrees", "degrees", "joint_shape", "normalise", "split_repeats"]

Ids = NDArray[np.int64]
"""Variable ids of one term: one axis for each axis of the tensor, of the tensor's size or 1; -1 = fixed."""

Terms = tuple[tuple[int, Ids], ...]
"""Exponents of one tensor: (coefficient, ids), summed."""


@dataclass(frozen=True)
class Collisions:
    """Entries that carry one variable in several terms (the diagonal of a layer that writes the stream it reads).

    Attributes:
        entries: (n,) flat positions in the terms' joint shape.
        rows: (m,) index into `entries`, one row for each variable that is left in an entry.
        ids: (m,) that variable.
        coefficients: (m,) its net exponent, never 0.
    """

    entries: NDArray[np.int64]
    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    coefficients: NDArray[np.int64]


def normalise(terms: Sequence[tuple[int, Ids]], ndim: int) -> Terms:
    """Returns terms with one axis for each axis of the tensor, constant axes at size 1, and equal id arrays merged."""
    merged: dict[tuple[tuple[int, ...], bytes], tuple[int, Ids]] = {}
    for coefficient, array in terms:
        ids = np.asarray(array, dtype=np.int64)
        ids = ids.reshape((1,) * (ndim - ids.ndim) + ids.shape)
        for axis in range(ndim):
            size: int = ids.shape[axis]
            # Nearly always the last place tells that they vary.
            if size > 1 and not (size == ids.size and ids.item(0) != ids.item(-1)):
                first = ids.take([0], axis)
                if bool((ids.take([-1], axis) == first).all()) and bool((ids == first).all()):
                    ids = first
        if not ids.size or (ids.item(0) < 0 and bool((ids < 0).all())):
            continue
        key = (ids.shape, ids.tobytes())
        merged[key] = (merged.get(key, (0, ids))[0] + int(coefficient), ids)
    return tuple((coefficient, ids) for coefficient, ids in merged.values() if coefficient)


def joint_shape(terms: Terms, ndim: int) -> tuple[int, ...]:
    """Returns the shape that the terms' ids broadcast to: size 1 on the axes along which no exponent varies."""
    return np.broadcast_shapes((1,) * ndim, *(ids.shape for _, ids in terms))


def collisions(terms: Terms, ndim: int) -> Collisions | None:
    """Returns the entries in which two terms carry the same variable; None where there are none (nearly always)."""
    shape = joint_shape(terms, ndim)
    met = None
    for position, (_, one) in enumerate(terms):
        for _, other in terms[position + 1 :]:
            shared = np.intersect1d(one, other)
            if not (shared >= 0).any():
                continue
            same = np.broadcast_to((one == other) & (one >= 0), shape)
            met = same if met is None else met | same
    if met is None or not met.any():
        return None
    entries = np.flatnonzero(met)
    place = np.unravel_index(entries, shape)
    columns = [ids[tuple(np.minimum(axis, size - 1) for axis, size in zip(place, ids.shape, strict=True))] for _, ids in terms]
    ids = np.stack(columns, axis=1).reshape(-1)
    rows = np.repeat(np.arange(entries.size), len(terms))
    values = np.tile(np.array([coefficient for coefficient, _ in terms], dtype=np.int64), entries.size)
    free = ids >= 0
    ids, rows, values = ids[free], rows[free], values[free]
    order = np.lexsort((ids, rows))
    ids, rows, values = ids[order], rows[order], values[order]
    starts = np.flatnonzero(np.r_[True, (ids[1:] != ids[:-1]) | (rows[1:] != rows[:-1])])
    values = np.add.reduceat(values, starts)
    ids, rows = ids[starts], rows[starts]
    left = values != 0
    return Collisions(entries.astype(np.int64), rows[left].astype(np.int64), ids[left], values[left])


def split_repeats(shape: Sequence[int], terms: Sequence[tuple[int, Ids]]) -> tuple[tuple[int, ...], Terms]:
    """Returns the same tensor with axes split where ids come in runs of one length: there are fewer sums then.

    A linear layer behind a flatten has one variable for each channel, not for each pixel; heads of attention have one for all of
    a head; all rows of one group of a convolution read the same channels.

    Args:
        shape: the tensor's.
        terms: its exponents.

    Returns:
        The finer shape, as a view of the tensor has it, and the terms on it.
    """
    normal = normalise(terms, len(shape))
    sizes: list[int] = []
    split: list[list[int]] = [[] for _ in normal]
    for axis, size in enumerate(shape):
        parts, runs = [size], {_run(ids, axis) for _, ids in normal if ids.shape[axis] > 1}
        for run in sorted(runs, reverse=True):
            if 1 < run < parts[-1] and parts[-1] % run == 0:
                parts = [*parts[:-1], parts[-1] // run, run]
        sizes += parts
        for found, (_, ids) in zip(split, normal, strict=True):
            found += [1] * len(parts) if ids.shape[axis] == 1 else parts
    if sizes == list(shape):
        return tuple(sizes), normal
    finer = tuple((coefficient, ids.reshape(axes)) for (coefficient, ids), axes in zip(normal, split, strict=True))
    return tuple(sizes), normalise(finer, len(sizes))


def _run(ids: Ids, axis: int) -> int:
    """Returns the largest length of runs of equal ids that an axis is made of."""
    lines = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1) if ids.size > ids.shape[axis] else ids.reshape(-1, 1)
    begins = np.flatnonzero((lines[1:] != lines[:-1]).any(axis=1)) + 1
    return int(np.gcd.reduce(begins, initial=ids.shape[axis]))


def degrees(terms: Terms, ndim: int, met: Collisions | None, into: NDArray[np.int64]) -> None:
    """Raises ``into[k]`` to the largest sum of |exponents| among the entries that carry k, where that exceeds 2."""
    total = sum(abs(coefficient) for coefficient, _ in terms)
    if total <= 2:
        return
    if met is None and all(bool((ids >= 0).all()) for _, ids in terms):
        for _, ids in terms:
            into[ids.reshape(-1)] = np.maximum(into[ids.reshape(-1)], total)
        return
    shape = joint_shape(terms, ndim)
    sums = np.zeros(shape, dtype=np.int32)
    for coefficient, ids in terms:
        sums += np.where(ids >= 0, abs(coefficient), 0).astype(np.int32)
    if met is not None:
        sums.reshape(-1)[met.entries] = 0
        net = np.zeros(met.entries.size, dtype=np.int64)
        np.add.at(net, met.rows, np.abs(met.coefficients))
        np.maximum.at(into, met.ids, net[met.rows])
    for _, ids in terms:
        axes = tuple(axis for axis in range(ndim) if ids.shape[axis] == 1)
        largest = sums.max(axis=axes, keepdims=True)
        free = ids >= 0
        np.maximum.at(into, ids[free], largest[free])


def cycle_degrees(terms: Terms, ndim: int, met: Collisions | None, into: NDArray[np.int64]) -> None:
    """Raises ``into[k]`` to A_k of a Jacobi cycle: the larger of 2 max |a_ek| and the largest sum of |exponents|, if above 2.

    The sum alone never raises the objective, but a variable of exponent 2 by itself would then ring for ever.
    """
    degrees(terms, ndim, met, into)
    if met is not None:
        np.maximum.at(into, met.ids, 2 * np.abs(met.coefficients))
    for coefficient, ids in terms:
        if abs(coefficient) > 1:
            carried = ids if met is None else ids[_apart(ids, joint_shape(terms, ndim), met)]
            carried = carried[carried >= 0]
            into[carried] = np.maximum(into[carried], 2 * abs(coefficient))


def _apart(ids: Ids, shape: tuple[int, ...], met: Collisions) -> NDArray[np.bool_]:
    """Returns which ids of a term stand in at least one entry that is no collision."""
    apart = np.ones(shape, dtype=bool)
    apart.reshape(-1)[met.entries] = False
    constant = tuple(axis for axis, size in enumerate(ids.shape) if size == 1)
    return np.asarray(apart.any(axis=constant, keepdims=True))

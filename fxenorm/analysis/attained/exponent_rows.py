"""The exponents of the counted entries as few sparse rows; they decide whether the objective has a minimum.

A layer of n outputs and m inputs has n * m entries, but max over i and j of (out_i - in_j) is below zero exactly where a number
lies between all out_i and all in_j: one more column, a hub, takes the place of all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.program import Block, ReduceProgram
from ...kernels.reference.channel_sums import has_zeros, is_zero
from ..held import Mask

__all__ = ["ExponentRows", "any_lacking", "exponent_rows", "term_sides"]

Ids = NDArray[np.int64]

_FEW, _SHARE = 1 << 16, 16
"""A tensor is looked at weight by weight where this makes at most so many rows, or rows for this share of its weights.

Bounds: a row of two terms takes 48 bytes, so the first is 3 MiB, and a 16th of the weights takes less than they do in float32.
"""


@dataclass
class ExponentRows:
    """Rows r for which r . s <= 0 along a direction in which the objective never rises.

    Attributes:
        count: number of variables K; columns from K on are hubs.
        columns: number of columns.
        lacking: whether any entry was left out because its weight is zero.
    """

    count: int
    columns: int
    lacking: bool = False
    _rows: int = 0
    _parts: list[tuple[Ids, Ids, Ids]] = field(default_factory=list)

    def hubs(self, number: int) -> Ids:
        """Adds columns for hubs; returns their numbers."""
        self.columns += number
        return np.arange(self.columns - number, self.columns, dtype=np.int64)

    def add(self, terms: Sequence[tuple[int, Ids]], size: int) -> None:
        """Adds `size` rows, given by term as (size,) columns; column -1: none."""
        for coefficient, ids in terms:
            flat = np.broadcast_to(ids, (size,))
            kept = np.flatnonzero(flat >= 0)
            self._parts.append((kept + self._rows, flat[kept].astype(np.int64), np.full(kept.size, coefficient, dtype=np.int64)))
        self._rows += size

    def hold_sum(self, ids: Ids) -> None:
        """Adds that the sum of some columns stays 0: it may neither rise nor fall."""
        for sign in (1, -1):
            row = np.full(ids.size, self._rows, dtype=np.int64)
            self._parts.append((row, ids.astype(np.int64), np.full(ids.size, sign, dtype=np.int64)))
            self._rows += 1

    def matrix(self, fixed: Mask) -> Any:
        """Returns (rows, columns) sparse: the rows without the fixed variables, over their divisors, each once."""
        from scipy.sparse import csr_array

        none = np.zeros(0, dtype=np.int64)
        rows, columns, values = (np.concatenate([none, *arrays]) for arrays in zip((none, none, none), *self._parts, strict=True))
        free = np.append(~fixed, np.ones(self.columns - self.count, dtype=bool))[columns]
        found = csr_array((values[free], (rows[free], columns[free])), shape=(self._rows, self.columns))
        found.sum_duplicates()
        found.eliminate_zeros()
        return distinct_rows(found)

    def extended(self, others: Sequence[ExponentRows]) -> ExponentRows:
        """Returns these rows and those of others, whose hubs become further columns."""
        found = ExponentRows(self.count, self.count, any(other.lacking for other in (self, *others)))
        for other in (self, *others):
            shift = found.columns - self.count
            for rows, columns, values in other._parts:
                found._parts.append((rows + found._rows, np.where(columns >= self.count, columns + shift, columns), values))
            found._rows += other._rows
            found.columns += other.columns - other.count
        return found


def distinct_rows(matrix: Any) -> Any:
    """Returns rows divided by their greatest common divisors, without empty and repeated ones."""
    lengths = np.diff(matrix.indptr)
    matrix = matrix[np.flatnonzero(lengths)]
    if not matrix.shape[0]:
        return matrix
    matrix.sort_indices()
    starts = matrix.indptr[:-1]
    divisors = np.gcd.reduceat(np.abs(matrix.data), starts)
    matrix.data = matrix.data // np.repeat(divisors, np.diff(matrix.indptr))
    random = np.random.default_rng(0).integers(1, 2**62, size=(2, matrix.shape[1]), dtype=np.int64)
    keys = [np.add.reduceat(matrix.data * some[matrix.indices], starts) for some in random]
    order = np.lexsort(keys)
    same = (keys[0][order][1:] == keys[0][order][:-1]) & (keys[1][order][1:] == keys[1][order][:-1])
    return matrix[np.sort(order[np.append(True, ~same)])]


def any_lacking(program: ReduceProgram, matrices: Sequence[Tensor], any_zero: Callable[[float, Tensor], bool]) -> bool:
    """Returns whether the rows of `exponent_rows` lack those of any entry, with less work than these."""
    pairs = zip(program.blocks, matrices, strict=True)
    return any(bool(block.terms) and any_zero(program.p, matrix) for block, matrix in pairs)


def exponent_rows(
    program: ReduceProgram,
    matrices: Sequence[Tensor] | None = None,
    any_zero: Callable[[float, Tensor], bool] = has_zeros,
) -> ExponentRows:
    """Returns the rows of all counted entries; of those that are not zero, where matrices are given.

    Args:
        program: the objective, on the CPU.
        matrices: as `Backend.matrices` returns them; None: every entry counts.
        any_zero: as `Backend.has_zeros`.
    """
    found = ExponentRows(program.num_scales, program.num_scales)
    for number, block in enumerate(program.blocks):
        if not block.terms:
            continue
        present = None
        if matrices is not None and any_zero(program.p, matrices[number]):
            present, found.lacking = ~is_zero(program.p, matrices[number]).cpu().numpy(), True
        _add_block(found, block, program.num_scales, present)
    return found


def _add_block(found: ExponentRows, block: Block, count: int, present: Mask | None) -> None:
    """Adds the rows of one tensor."""
    terms = _terms(block, count)
    shape = np.broadcast_shapes(*(ids.shape for _, ids in terms))
    axes = [_varying(ids) for _, ids in terms]
    common = set.intersection(*axes)
    sides = _sides(terms, [own - common for own in axes])
    if present is not None:
        present = _any(present, tuple(axis for axis in range(len(shape)) if shape[axis] == 1))
    if len(sides) == 1:
        whole = [(c, np.broadcast_to(ids, shape)) for c, ids in terms]
        chosen = slice(None) if present is None else np.flatnonzero(present)
        rows = [(c, ids.reshape(-1)[chosen]) for c, ids in whole]
        found.add(rows, math.prod(shape) if present is None else len(chosen))  # type: ignore[arg-type]
    elif present is None:
        _add_hubs(found, sides, shape, common, [None] * len(sides))
    elif int(present.sum()) <= max(_FEW, present.size // _SHARE):
        _add_entries(found, terms, shape, present)
    else:
        _add_mostly_full(found, terms, sides, shape, common, present)


def _terms(block: Block, count: int) -> list[tuple[int, Ids]]:
    """Returns a tensor's terms, with -1 for "fixed"."""
    return [(c, np.where(ids.numpy() == count, -1, ids.numpy())) for c, ids in block.terms]


def _any(mask: Mask, axes: tuple[int, ...]) -> Mask:
    """Whether any is set along some axes, which stay with size 1."""
    return np.asarray(mask.any(axis=axes, keepdims=True))


def _varying(ids: Ids) -> set[int]:
    """Returns the axes along which ids vary."""
    return {axis for axis, size in enumerate(ids.shape) if size > 1}


def term_sides(block: Block, count: int) -> list[list[tuple[int, Ids]]]:
    """Returns the terms of a tensor in sides: those that vary along a common axis together."""
    terms = _terms(block, count)
    return _sides(terms, [_varying(ids) for _, ids in terms]) if terms else []


def _sides(terms: Sequence[tuple[int, Ids]], axes: Sequence[set[int]]) -> list[list[tuple[int, Ids]]]:
    """Puts the terms together by the axes that they vary along, so that no two sides share an axis."""
    parts: list[tuple[set[int], list[tuple[int, Ids]]]] = []
    for own, term in zip(axes, terms, strict=True):
        met = [part for part in parts if part[0] & own or (not own and part is parts[0])]
        for part in met:
            parts.remove(part)
        parts.insert(0, (own.union(*(part[0] for part in met)), [item for part in met for item in part[1]] + [term]))
    return [members for _, members in parts]


def _add_entries(found: ExponentRows, terms: Sequence[tuple[int, Ids]], shape: tuple[int, ...], present: Mask) -> None:
    """Adds one row for each entry that is present."""
    places = np.nonzero(present)

    def at(ids: Ids) -> Ids:
        """Returns the ids of these entries."""
        return np.asarray(ids[tuple(np.minimum(place, size - 1) for place, size in zip(places, ids.shape, strict=True))])

    found.add([(c, at(ids)) for c, ids in terms], places[0].size)


def _add_hubs(
    found: ExponentRows,
    sides: Sequence[Sequence[tuple[int, Ids]]],
    shape: tuple[int, ...],
    common: set[int],
    chosen: Sequence[Mask | None],
) -> None:
    """Adds all combinations of the sides' entries: each side below a hub, the last below minus the sum of the hubs."""
    base = tuple(size if axis in common else 1 for axis, size in enumerate(shape))
    hubs = [found.hubs(math.prod(base)).reshape(base) for _ in sides[1:]]
    for number, (side, mask) in enumerate(zip(sides, chosen, strict=True)):
        own = np.broadcast_shapes(base, *(ids.shape for _, ids in side))
        above = [(-1, hubs[number])] if number < len(hubs) else [(1, hub) for hub in hubs]
        kept = slice(None) if mask is None else np.flatnonzero(np.broadcast_to(mask, own))
        rows = [(c, np.broadcast_to(ids, own).reshape(-1)[kept]) for c, ids in (*side, *above)]
        found.add(rows, rows[0][1].size)


def _add_mostly_full(
    found: ExponentRows,
    terms: Sequence[tuple[int, Ids]],
    sides: Sequence[Sequence[tuple[int, Ids]]],
    shape: tuple[int, ...],
    common: set[int],
    present: Mask,
) -> None:
    """Adds a tensor with some zeros: full slices of the first side over hubs, the other entries one by one if few."""
    axes = [set().union(*(_varying(ids) for _, ids in side)) - common for side in sides]
    others = [tuple(axis for axis in range(len(shape)) if axis not in own and axis not in common) for own in axes]
    reaching = [_any(present, other) for other in others]
    full = ~_any(~present, others[0])
    scattered = present & ~full
    if int(scattered.sum()) > max(_FEW, present.size // _SHARE):
        # Zeros here and there in a large tensor: taken as dense but for what is zero altogether.
        _add_hubs(found, sides, shape, common, reaching)
        return
    if full.any():
        along = _any(full, tuple(axes[0]))
        _add_hubs(found, sides, shape, common, [full, *(mask & along for mask in reaching[1:])])
    _add_entries(found, terms, shape, scattered)

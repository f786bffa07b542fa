"""A tensor as the compiled kernels see it: rows of entries in the order of memory, and the exponents of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .program import TermTensors

__all__ = ["MatrixForm", "cut", "matrix_form"]

Ids32 = NDArray[np.int32]
Table = NDArray[np.int64]

_SMALL = 1 << 16
_PER_ROW = 8


@dataclass(frozen=True)
class MatrixForm:
    """Rows by columns; kernels of convolutions are columns too, whatever side of the input channels they lie on.

    Attributes:
        rows, width: the table's shape.
        row_terms: (coefficient, (rows,) ids), "fixed" as in `TermTensors`.
        column_terms: (coefficient, (segments * width,) ids).
        segments: (segments + 1,) rows at which other column ids begin (the groups of a convolution), and the end.
        row_axes: the axes of the tensor that the rows are, the slowest in memory first.
    """

    rows: int
    width: int
    row_terms: tuple[tuple[int, Ids32], ...]
    column_terms: tuple[tuple[int, Ids32], ...]
    segments: Table
    row_axes: tuple[int, ...]


def matrix_form(shape: Sequence[int], strides: Sequence[int], terms: TermTensors) -> MatrixForm | None:
    """The table of a tensor; None where its memory has gaps, or no table is much smaller than the tensor itself.

    Args:
        shape, strides: the tensor's, in any order of the axes (contiguous, channels_last, transposed).
        terms: its exponents.
    """
    axes = sorted((axis for axis in range(len(shape)) if shape[axis] > 1), key=lambda axis: -strides[axis])
    expected = 1
    for axis in reversed(axes):
        if strides[axis] != expected:
            return None
        expected *= shape[axis]
    sizes = [shape[axis] for axis in axes]
    arrays = [_in_memory_order(ids.numpy(), len(shape), axes) for _, ids in terms]
    costs = [_cost(sizes, arrays, split) for split in range(len(axes) + 1)]
    split = min(range(len(costs)), key=costs.__getitem__)
    rows, width = math.prod(sizes[:split]), math.prod(sizes[split:])
    segments = np.array([0, rows], dtype=np.int64)
    columns = [array for array in arrays if any(size > 1 for size in array.shape[split:])]
    if any(size > 1 for array in columns for size in array.shape[:split]):
        starts = np.flatnonzero(_changes(sizes, columns, split))
        segments = np.concatenate([[0], starts + 1, [rows]]).astype(np.int64)
    count = segments.size - 1
    if rows + (count * width if columns else 0) > max(_SMALL, math.prod(sizes) // 4) or count > _SMALL:
        return None
    row_terms, column_terms = [], []
    for (coefficient, _), array in zip(terms, arrays, strict=True):
        if any(size > 1 for size in array.shape[split:]):
            by_row = _rows(sizes, array, split) if count > 1 else array.reshape(1, *array.shape[split:])
            chosen = by_row[segments[:-1]] if count > 1 else by_row
            full = np.broadcast_to(chosen, (count, *sizes[split:]))
            column_terms.append((coefficient, np.ascontiguousarray(full.reshape(-1), dtype=np.int32)))
        else:
            full = np.broadcast_to(array.reshape(array.shape[:split]), sizes[:split])
            row_terms.append((coefficient, np.ascontiguousarray(full.reshape(-1), dtype=np.int32)))
    return MatrixForm(rows, width, tuple(row_terms), tuple(column_terms), segments, tuple(axes[:split]))


def cut(form: MatrixForm, target: int, columns: int) -> Table:
    """(tiles, 5): row, rows, column, columns, segment; about `target` entries each, whatever the number of threads.

    Args:
        form: the table.
        target: entries of a tile.
        columns: at most half as many again are in one tile.
    """
    width = form.width if form.width <= 1.5 * columns else columns
    height = max(8, target // width // 8 * 8)
    found = [
        (row, min(height, stop - row), column, min(width, form.width - column), segment)
        for segment, (start, stop) in enumerate(zip(form.segments[:-1].tolist(), form.segments[1:].tolist(), strict=True))
        for row in range(start, stop, height)
        for column in range(0, form.width, width)
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 5)


def _in_memory_order(ids: NDArray[np.int64], ndim: int, axes: Sequence[int]) -> NDArray[np.int64]:
    """Ids with one axis for each axis of the table, in its order."""
    others = [axis for axis in range(ndim) if axis not in axes]
    return np.reshape(np.transpose(ids, [*others, *axes]), [ids.shape[axis] for axis in axes])


def _cost(sizes: Sequence[int], arrays: Sequence[NDArray[np.int64]], split: int) -> float:
    """What a split of the axes into rows and columns costs, in entries: short rows are slow."""
    columns = [array for array in arrays if any(size > 1 for size in array.shape[split:])]
    rows, width = math.prod(sizes[:split]), math.prod(sizes[split:])
    if not columns:
        return _PER_ROW * rows + width
    if not any(size > 1 for array in columns for size in array.shape[:split]):
        return _PER_ROW * rows + width
    if sum(rows * math.prod(array.shape[split:]) for array in columns) > math.prod(sizes) // 2 + _SMALL:
        return math.inf
    return _PER_ROW * rows + (1 + int(_changes(sizes, columns, split).sum())) * width


def _changes(sizes: Sequence[int], columns: Sequence[NDArray[np.int64]], split: int) -> NDArray[np.bool_]:
    """(rows - 1,) whether the next row has other column ids."""
    changed = np.zeros(max(0, math.prod(sizes[:split]) - 1), dtype=bool)
    for array in columns:
        by_row = _rows(sizes, array, split).reshape(changed.size + 1, -1)
        changed |= (by_row[1:] != by_row[:-1]).any(axis=1)
    return changed


def _rows(sizes: Sequence[int], array: NDArray[np.int64], split: int) -> NDArray[np.int64]:
    """Ids with the rows as one axis."""
    full = np.broadcast_to(array, (*sizes[:split], *array.shape[split:]))
    return full.reshape(math.prod(sizes[:split]), *array.shape[split:])

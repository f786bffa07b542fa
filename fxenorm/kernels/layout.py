"""A tensor as fast kernels see it: rows of entries in the order of memory, and the exponents of rows and columns.

`Coverage` says which tensors have such a table for some kernels, and why others have none; all executors share it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .memory import has_plain_memory
from .program import ReduceProgram, ScaleTarget, TermTensors

__all__ = ["Coverage", "MatrixForm", "announce", "cut", "likeness", "matrix_form", "written"]

Ids32 = NDArray[np.int32]
Table = NDArray[np.int64]

_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The types that the kernels of C++ and of Triton know how to load and to round."""

_COMPLEX_TYPES = (torch.complex64, torch.complex128)

_NO_TABLE = "its memory has gaps, or its exponents are no rows and columns"

_SMALL = 1 << 16
"""Ids and segments of a table up to this many need no comparison with the tensor's size: 256 KiB of ids, a core's own cache."""

_PER_ROW = 8
"""What a row costs beside its entries, in entries; a bound by estimate: one vector of float32 is loaded and one sum is closed."""


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


@dataclass(frozen=True)
class Coverage:
    """Which tensors some kernels can read and write by their addresses; the rest is left to the reference executor.

    Attributes:
        device: where the tensors lie.
        linear_up_to: the largest finite p for which the kernels add powers themselves rather than logarithms.
        most_log_weight: the largest |logarithm| of a layer weight that leaves such sums in the range of float64.
        most_coefficient: the largest |exponent| that a term of a counted tensor may have.
        complex_numbers: whether complex tensors are taken as real ones of twice as many entries.
    """

    device: torch.device
    linear_up_to: float
    most_log_weight: float
    most_coefficient: float = math.inf
    complex_numbers: bool = False

    def target_form(self, target: ScaleTarget, known: dict[Hashable, MatrixForm | None]) -> MatrixForm | str:
        """Returns a target as rows and columns, or why the kernels cannot multiply it.

        Args:
            target: what is multiplied.
            known: the forms by `likeness`; what is found is added, so that targets which look alike share one.
        """
        refusal = "its entries have an offset" if target.offset else self._refusal(target.tensor)
        if refusal:
            return refusal
        key = likeness(target)
        if key not in known:
            known[key] = _form_of(target.tensor, target.terms)
        return known[key] or _NO_TABLE

    def counted_form(self, program: ReduceProgram, index: int, tensor: Tensor, factor: Tensor | None) -> MatrixForm | str:
        """Returns a counted tensor as rows and columns, or why the kernels cannot sum its powers.

        Args:
            program: the objective, on the CPU.
            index: which of its blocks.
            tensor: the block's tensor.
            factor: by what its entries are multiplied before their norm is taken, or None.
        """
        block = program.blocks[index]
        if self.linear_up_to < program.p < math.inf:
            return f"sums of powers of p={program.p:g} leave the range of float64"
        if not abs(program.log_weights.numpy()[index]) < self.most_log_weight:
            return "its layer weight is too large or too small"
        if block.collided is not None:
            return "two of its terms meet in one variable"
        if block.offset:
            return "its entries have an offset"
        if any(abs(coefficient) > self.most_coefficient for coefficient, _ in block.terms):
            return "an exponent is too large"
        if tensor.is_complex() and program.p != 2:
            return "it is complex, and p is not 2"
        refusal = self._refusal(tensor)
        form = None if refusal else _form_of(tensor, block.terms)
        if form is None or factor is None:
            return form or refusal or _NO_TABLE
        along = [axis for axis, size in enumerate(factor.shape) if size > 1]
        if along != list(form.row_axes) or factor.ndim != tensor.ndim or factor.device != self.device:
            return "its folded norm does not lie along the rows"
        return form

    def _refusal(self, tensor: Tensor) -> str:
        """Returns why the kernels cannot reach a tensor's entries by its address, "" where they can."""
        if tensor.device != self.device:
            return f"it is on {tensor.device}"
        if tensor.dtype not in _TYPES and not (self.complex_numbers and tensor.dtype in _COMPLEX_TYPES):
            return f"it is of {tensor.dtype}"
        return "" if has_plain_memory(tensor) else "it has no plain memory"


def likeness(target: ScaleTarget) -> tuple[Hashable, ...]:
    """Returns what the rows and columns of a target depend on."""
    return id(target.terms), tuple(target.tensor.shape), target.tensor.stride(), target.tensor.is_complex()


def _form_of(tensor: Tensor, terms: TermTensors) -> MatrixForm | None:
    """Returns a tensor as rows and columns; its ids may be on its device or on the CPU."""
    if tensor.device.type != "cpu":
        terms = tuple((coefficient, ids.cpu()) for coefficient, ids in terms)
    if tensor.is_complex():
        tensor, terms = torch.view_as_real(tensor.detach()), tuple((coefficient, ids[..., None]) for coefficient, ids in terms)
    return matrix_form(tensor.shape, tensor.stride(), terms)


def written(targets: Sequence[ScaleTarget]) -> list[Tensor]:
    """Returns the tensors of some targets whose changes autograd keeps count of."""
    return [target.tensor for target in targets if not target.tensor.is_inference()]


def announce(tensors: Sequence[Tensor]) -> None:
    """Tells autograd what kernels write by address: a backward pass through the old values would be wrong."""
    torch.autograd.graph.increment_version(tensors)


def matrix_form(shape: Sequence[int], strides: Sequence[int], terms: TermTensors) -> MatrixForm | None:
    """Returns the table of a tensor; None where its memory has gaps, or no table is much smaller than the tensor itself.

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
    """Returns (tiles, 5): row, rows, column, columns, segment; about `target` entries each, whatever the number of threads.

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
    """Returns ids with one axis for each axis of the table, in its order."""
    others = [axis for axis in range(ndim) if axis not in axes]
    return np.reshape(np.transpose(ids, [*others, *axes]), [ids.shape[axis] for axis in axes])


def _cost(sizes: Sequence[int], arrays: Sequence[NDArray[np.int64]], split: int) -> float:
    """Returns the cost of a split of the axes into rows and columns, in entries: short rows are slow."""
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
    """Returns (rows - 1,) whether the next row has other column ids."""
    changed = np.zeros(max(0, math.prod(sizes[:split]) - 1), dtype=bool)
    for array in columns:
        by_row = _rows(sizes, array, split).reshape(changed.size + 1, -1)
        changed |= (by_row[1:] != by_row[:-1]).any(axis=1)
    return changed


def _rows(sizes: Sequence[int], array: NDArray[np.int64], split: int) -> NDArray[np.int64]:
    """Returns ids with the rows as one axis."""
    full = np.broadcast_to(array, (*sizes[:split], *array.shape[split:]))
    return full.reshape(math.prod(sizes[:split]), *array.shape[split:])

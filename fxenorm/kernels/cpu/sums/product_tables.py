"""Tables of addresses for compiled products of |w|^p with two vectors, and for looks at all entries: one call for many."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...memory import has_plain_memory
from ...program import Block
from ...reference.channel_sums import has_two_sides, is_narrow, sides_of
from ..tables import TYPES

__all__ = ["InLines", "ProductTables", "Sides", "sides_in_memory"]

InLines = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Some numbers of the tables: the places of their rows and of their columns in the vector of all lines, and their logarithms."""

_FEWEST_ROWS, _MOST_TILES = 32, 16
"""Rows of a tile at least and tiles of a table at most: the sums of a tile's columns, in float64, stay small beside its entries,
and several threads share a table all the same. Bounds by estimate."""

_MOST_IN_A_LOOK = 1 << 20
"""Entries of the tiles that one call looks at, and of which it may find all: a bound on room, 24 MiB."""

_SINGLE_THREAD_UP_TO = 1 << 17
"""Entries that one thread multiplies faster than several would be woken: some ten microseconds; a bound by estimate."""


@dataclass(frozen=True)
class Sides:
    """One table of rows by columns as it lies in memory.

    Attributes:
        table: rows by columns, the entries of each row side by side.
        ids: of the variables of its rows and of its columns.
        terms: which of the block's terms these are.
        slots: (first of the rows, first of the columns): the places of their contributions within those of the block.
    """

    table: Tensor
    ids: tuple[Tensor, Tensor]
    terms: tuple[int, int]
    slots: tuple[int, int]


def sides_in_memory(block: Block, matrix: Tensor) -> list[Sides]:
    """Returns a block as tables that the kernels can read: one, or one a matrix of a stack; none where they cannot."""
    if not has_two_sides(block) or matrix.device.type != "cpu" or not has_plain_memory(matrix) or not matrix.numel():
        return []
    if matrix.dtype not in TYPES:
        return []
    columns, rows = block.term_axes
    own, other = sides_of(block)
    stack = [0] if own.ndim == 2 else []
    permuted = matrix.permute([*stack, *rows, *columns, *block.kernel_axes])
    try:
        tables = permuted.view(-1, own.shape[-1], other.shape[-1])
    except RuntimeError:  # the axes of a side do not follow one another in memory
        return []
    own, other = own.reshape(len(tables), -1), other.reshape(len(tables), -1)
    found = [
        side for number, table in enumerate(tables) for side in _oriented(table, own[number], other[number], number, own.numel())
    ]
    return found if len(found) == len(tables) else []


def _oriented(table: Tensor, own: Tensor, other: Tensor, number: int, behind: int) -> Iterator[Sides]:
    """Yields a table with the side first whose entries lie apart in memory; nothing where both do."""
    slots = (number * own.numel(), behind + number * other.numel())
    if table.stride(1) == 1 or table.shape[1] == 1:
        yield Sides(table, (own, other), (0, 1), slots)
    elif table.stride(0) == 1 or table.shape[0] == 1:
        yield Sides(table.T, (other, own), (1, 0), slots[::-1])


class ProductTables:
    """Tables at their places; all their numbers lie in one vector, of each first one a row, and then one a column.

    Args:
        tables: rows by columns, the entries of each row side by side.
        for_looks: whether tiles are so small that of each all can be found.

    Attributes:
        lengths: (2 tables,) of the sides.
        size: of the vector.
    """

    def __init__(self, tables: Sequence[Tensor], *, for_looks: bool = False) -> None:
        self.lengths = np.array([size for table in tables for size in table.shape], dtype=np.int64)
        self.size = int(self.lengths.sum())
        self._kept = list(tables)
        places = np.cumsum(self.lengths) - self.lengths
        rows: list[tuple[int, ...]] = []
        tiles: list[NDArray[np.int64]] = []
        count = room = 0
        for number, table in enumerate(tables):
            cuts = _tiles(number, table.shape[0], table.shape[1], room, for_looks)
            stride = table.stride(0) if table.shape[0] > 1 else table.shape[1]
            ends = count, count + len(cuts)
            power = int(not is_narrow(table))
            rows.append((table.data_ptr(), *table.shape, stride, TYPES[table.dtype], power, int(places[2 * number]), *ends))
            tiles.append(cuts)
            count, room = ends[1], 0 if for_looks else room + len(cuts) * table.shape[1]
        self._tables = np.array(rows, dtype=np.int64).reshape(-1, 9)
        self._tiles = np.concatenate(tiles) if tiles else np.zeros((0, 4), dtype=np.int64)
        self._work = np.empty(room, dtype=np.float64)
        self._single_thread = sum(table.numel() for table in tables) <= _SINGLE_THREAD_UP_TO

    def times(self, library: ctypes.CDLL, p: float, inner: Tensor) -> Tensor:
        """Returns the sums of |w|^p of each row, weighted by the columns' numbers, and of each column, by the rows'.

        Args:
            library: the compiled kernels.
            p: the exponent of weights; what is in float64 holds powers already.
            inner: (size,) float64.
        """
        sums = torch.empty(self.size, dtype=torch.float64, device="cpu")
        library.fxenorm_products(
            *(self._tables.ctypes.data, len(self._tables), self._tiles.ctypes.data, len(self._tiles), p),
            *(inner.data_ptr(), sums.data_ptr(), self._work.ctypes.data),
            1 if self._single_thread else torch.get_num_threads(),
        )
        return sums

    def above(self, library: ctypes.CDLL, moves: Tensor, bounds: Tensor) -> Iterator[InLines]:
        """Yields, some at a time, the numbers above the lesser bound of their row and column after a rescaling.

        Args:
            library: the compiled kernels.
            moves: (size,) float64 factors; of tables of logarithms, what is added.
            bounds: (size,) float64, in the same way.
        """
        sizes = self._tiles[:, 2] * self._tables[self._tiles[:, 0], 2]
        ends = np.cumsum(sizes)
        first = 0
        while first < len(sizes):
            before = ends[first] - sizes[first]
            last = max(first + 1, int(np.searchsorted(ends, before + _MOST_IN_A_LOOK, side="right")))
            starts = ends[first:last] - sizes[first:last] - before
            yield self._found(
                *(library.fxenorm_above, self._tiles[first:last].ctypes.data, last - first, moves.data_ptr(), bounds.data_ptr()),
                starts=starts,
                room=int(ends[last - 1] - before),
            )
            first = last

    def largest(self, library: ctypes.CDLL, moves: Tensor, count: int) -> InLines:
        """Returns so many of the largest numbers of each row and column after a rescaling.

        Args:
            library: the compiled kernels.
            moves: as `above` takes them.
            count: how many of each line.
        """
        sizes = count * self.lengths.reshape(-1, 2).sum(1)
        given = (library.fxenorm_largest, len(self._tables), moves.data_ptr(), count)
        return self._found(*given, starts=np.cumsum(sizes) - sizes, room=int(sizes.sum()))

    def _found(self, call: Callable[..., int], *given: int, starts: NDArray[np.int64], room: int) -> InLines:
        """Returns what a call finds, each part of which has its own place in some room."""
        rows, columns = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64)
        logs, counts = np.empty(room, dtype=np.float64), np.empty(len(starts), dtype=np.int64)
        places = [part.ctypes.data for part in (starts, counts, rows, columns, logs)]
        count = call(self._tables.ctypes.data, *given, *places, 1 if self._single_thread else torch.get_num_threads())
        if count < 0:
            raise MemoryError("the largest entries of each channel need more memory than there is")
        return rows[:count].copy(), columns[:count].copy(), logs[:count].copy()


def _tiles(number: int, rows: int, width: int, room: int, for_looks: bool) -> NDArray[np.int64]:
    """Returns (tiles, 4) the tiles of a table: its number, their rows, and the places of their columns' sums from `room` on."""
    step = max(1, _MOST_IN_A_LOOK // (_MOST_TILES * width)) if for_looks else max(_FEWEST_ROWS, -(-rows // _MOST_TILES))
    starts = np.arange(0, rows, step, dtype=np.int64)
    found = np.empty((len(starts), 4), dtype=np.int64)
    found[:, 0], found[:, 1], found[:, 2] = number, starts, np.minimum(step, rows - starts)
    found[:, 3] = room + width * np.arange(len(starts))
    return found

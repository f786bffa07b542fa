"""Tables of tiles for the Triton kernels, made on the host once for tensors that stay where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..layout import MatrixForm

__all__ = ["COLUMNS", "FactorPlaces", "SumPlaces", "tiles_of"]

Longs = NDArray[np.int64]
Place = tuple[int, int]

COLUMNS = 256
"""Columns of a tile, a power of two; its rows are read some at a time. 256 of float32 are 1 KiB in a row: loads are coalesced."""

_ROWS = 64
_TILES = 8192
"""A tile has at least so many rows; more where that would make more tiles than this, so that partial sums stay few. Bounds by
estimate: 64 KiB of float32 a tile, and 60 tiles for each of 132 processors.
"""

_FILLED = 1024
"""Factors that one program makes; a bound by estimate: a layer of 1,000 channels is one program."""

_SEGMENT = 512
"""Sums of tiles in a segment, a bound by estimate: 64 lanes add 8 each. The order of additions depends on it alone."""


def tiles_of(form: MatrixForm, entries: int) -> Longs:
    """Returns (tiles, 5): row, rows, column, columns, segment.

    Args:
        form: the table.
        entries: of all tensors together.
    """
    height = max(_ROWS, -(-entries // (_TILES * COLUMNS)) // 8 * 8)
    starts, stops = form.segments[:-1], form.segments[1:]
    pieces = -(-(stops - starts) // height)
    segment = np.repeat(np.arange(len(starts)), pieces)
    row = starts[segment] + (np.arange(len(segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * height
    rows = np.minimum(height, stops[segment] - row)
    column = np.arange(0, form.width, COLUMNS)
    columns = np.minimum(COLUMNS, form.width - column)
    down, across = np.repeat(np.arange(len(row)), len(column)), np.tile(np.arange(len(column)), len(row))
    return np.stack([row[down], rows[down], column[across], columns[across], segment[down]], axis=1)


@dataclass
class FactorPlaces:
    """Where the factors of rows and columns lie, and how they are made from log-scales.

    Attributes:
        size: entries of all of them.
        tiles: by part, what `fill_factors` reads as `tiles`; `terms`, `ids` likewise.
        ranges: by offset of some factors, the first and last row of their `terms`.
    """

    size: int = 0
    tiles: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    terms: list[tuple[int, int]] = field(default_factory=list)
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    ranges: dict[int, tuple[int, int]] = field(default_factory=lambda: {-1: (0, 0)})
    _offset: int = 0

    def add(self, form: MatrixForm, power: int) -> Place:
        """Reserves the factors of a table's rows and columns; returns their offsets, -1 where there are none."""
        return self._side(form.row_terms, power), self._side(form.column_terms, power)

    def _side(self, terms: Sequence[tuple[int, NDArray[np.int32]]], power: int) -> int:
        """Reserves the factors of one side; returns their offset."""
        if not terms:
            return -1
        first, place, count = len(self.terms), self.size, terms[0][1].size
        for coefficient, ids in terms:
            self.terms.append((self._offset, coefficient * power))
            self.ids.append(ids)
            self._offset += ids.size
        for start in range(0, count, _FILLED):
            self.tiles.append((place + start, min(_FILLED, count - start), first, len(self.terms), start))
        self.size += count
        self.ranges[place] = first, len(self.terms)
        return place


@dataclass
class SumPlaces:
    """Where tiles leave their sums, and at which N and P those arrive.

    Args:
        count: number of variables.
        repeated: whether a sum counts as often as its coefficient says (it does unless p is infinite).

    Attributes:
        size: of the work space.
    """

    count: int
    repeated: bool
    size: int = 0
    _slots: list[Longs] = field(default_factory=list)
    _positions: list[Longs] = field(default_factory=list)

    def add(self, form: MatrixForm, tiles: Longs) -> Longs:
        """Reserves the sums of some tiles; returns (tiles, 2) where in the work space those of rows and of columns go."""
        places = np.full((len(tiles), 2), -1, dtype=np.int64)
        row_ids = tiles[:, 0]
        column_ids = tiles[:, 4] * form.width + tiles[:, 2]
        for side, (sizes, first, terms) in enumerate(
            ((tiles[:, 1], row_ids, form.row_terms), (tiles[:, 3], column_ids, form.column_terms))
        ):
            if not terms:
                continue
            before = np.cumsum(sizes) - sizes
            places[:, side] = self.size + before
            within = np.arange(int(sizes.sum())) - np.repeat(before, sizes)
            index, position = np.repeat(first, sizes) + within, self.size + np.arange(int(sizes.sum()))
            self.size += len(position)
            for coefficient, ids in terms:
                id_of = ids[index].astype(np.int64)
                moves = id_of < self.count
                slots = id_of[moves] + (self.count if coefficient > 0 else 0)
                for _ in range(abs(coefficient) if self.repeated else 1):
                    self._slots.append(slots)
                    self._positions.append(position[moves])
        return places

    def segments(self) -> tuple[Longs, Longs, NDArray[np.int32] | Longs]:
        """Returns by N and P where its segments begin, by segment where its positions begin, and these in the work space."""
        slots = np.concatenate([np.zeros(0, dtype=np.int64), *self._slots])
        positions = np.concatenate([np.zeros(0, dtype=np.int64), *self._positions])
        order = np.argsort(slots, kind="stable")
        counts = np.bincount(slots, minlength=2 * self.count)
        pieces = -(-counts // _SEGMENT)
        begins = np.cumsum(pieces) - pieces
        number = np.arange(int(pieces.sum())) - np.repeat(begins, pieces)
        starts = np.repeat(np.cumsum(counts) - counts, pieces) + number * _SEGMENT
        ordered = positions[order]
        narrow = self.size < math.ldexp(1, 31)
        return np.append(begins, pieces.sum()), np.append(starts, len(slots)), ordered.astype(np.int32) if narrow else ordered

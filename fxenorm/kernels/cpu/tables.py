"""Tables of addresses, shapes and ids for the compiled kernels; the structures are those of ``native/tables.h``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Hashable, Sequence
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..factors import exact_exp2, log2_factors
from ..layout import Coverage, MatrixForm, announce, cut, likeness, written
from ..memory import has_plain_memory
from ..program import Keep, ReduceProgram, ScaleTarget
from ..rooms import ends_of
from .runs import Run, condensed, run_of

__all__ = ["TYPES", "ReduceTable", "ScaleTable", "reduce_signature", "row_factors"]

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3, torch.complex64: 0, torch.complex128: 1}
"""The numbers by which ``native/tables.h`` knows the types; complex numbers are two real ones."""

COVERAGE = Coverage(torch.device("cpu"), linear_up_to=math.inf, most_log_weight=300.0, complex_numbers=True)
"""Layer weights of up to exp(300) keep sums in float64 that lie in 1e-170 ... 1e170, outside of which the kernels give up."""

_LINEAR_UP_TO = 8.0
"""``MOST_LINEAR`` of ``native/any_power.h``: beyond it the kernels add logarithms, which lose nothing; the 8th power of the
smallest float32, 1e-45, is 0, that of 1e-21 is not."""

_SMALLEST_TILE, _LARGEST_TILE, _TILES, _SCALED_TILE = 1 << 17, 1 << 22, 8, 1 << 17
"""Entries of a tile that is read: 8 tiles a tensor, so that several threads share a layer, of 0.5 MiB of float32 at least; 16 MiB
at most, since each writes sums of its own; and of a tile that is scaled. Bounds by estimate.
"""

_SUMMED_COLUMNS = 20_000
"""Columns in a tile of a wide table: their sums, 160 kB of float64, stay in a core's own caches."""

_SHARES = 1 << 16
"""``SHARES`` of ``native/tables.h``: the place of a tile in its tensor is a share of so many."""

_SINGLE_THREAD_UP_TO = 1 << 15
"""Entries that one thread handles faster than several would be woken: 128 KiB of float32; a bound by estimate."""

Signature = list[Any]


def reduce_signature(tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> Signature:
    """Returns what a table of tensors depends on: where they lie, and how."""
    return [*_places(tensors), *(factor is None for factor in factors)]


def _places(tensors: Sequence[Tensor]) -> Signature:
    """Returns by tensor its address, its strides and its type. Addresses of all devices differ."""
    return [*map(_address, tensors), *map(Tensor.stride, tensors), *map(attrgetter("dtype"), tensors)]


def _address(tensor: Tensor) -> int:
    """Returns the address at which a tensor's entries begin; 0 where it has none."""
    return tensor.data_ptr() if has_plain_memory(tensor) else 0


def _shares(cuts: NDArray[np.int64], matrix: int) -> NDArray[np.int64]:
    """Returns (tiles,) where in the tensor each tile lies; small tensors go to the first and to the last thread by turns."""
    if len(cuts) == 1:
        return np.array([_SHARES - 1 if matrix % 2 else 0])
    entries = cuts[:, 1] * cuts[:, 3]
    middle = np.cumsum(entries) - entries / 2
    shares: NDArray[np.int64] = np.minimum(middle / entries.sum() * _SHARES, _SHARES - 1).astype(np.int64)
    return shares


class ReduceTable:
    """All counted tensors at their present places.

    Args:
        program: on the CPU.
        tensors, factors: as `Backend.reduce` takes them.
        signature: what `reduce_signature` makes of these.
        forms: by block, its table, where those are known.

    Attributes:
        unsupported: positions of the blocks that the kernels cannot do, in order, and why.
        members: positions of those that they can, in the order of `matrices`; `forms`: their tables.
        matrices, tiles, links: the arrays that the kernels read; `link_ends`: by matrix, where its links end.
        work: the array for the kernels' partial sums.
        single_thread: whether one thread is enough.
    """

    def __init__(
        self,
        program: ReduceProgram,
        tensors: Sequence[Tensor],
        factors: Sequence[Tensor | None],
        signature: Signature,
        forms: Sequence[MatrixForm] | None = None,
    ) -> None:
        self.program, self.signature = program, signature
        self.unsupported: dict[int, str] = {}
        self.members: list[int] = []
        self.forms: list[MatrixForm] = []
        self._factored: list[tuple[int, int]] = []
        self._pointed: list[Tensor | None] = []
        self._size = 0
        self._slots: list[NDArray[np.int32]] = []
        found = _ReduceRows()
        # From the last to the first: what an optimizer wrote last is still in the cache.
        for index, (tensor, factor) in reversed(list(enumerate(zip(tensors, factors, strict=True)))):
            if tensor.numel():
                form = COVERAGE.counted_form(program, index, tensor, factor) if forms is None else forms[index]
                self._add(found, index, form, tensor, factored=factor is not None)
        self.matrices, self.tiles, self.links = found.arrays()
        self.link_ends = np.array(found.link_ends, dtype=np.int64)
        self.work = np.empty(self._size, dtype=np.float64)
        self.single_thread = sum(tensors[index].numel() for index in self.members) <= _SINGLE_THREAD_UP_TO

    def _add(self, found: _ReduceRows, index: int, form: MatrixForm | str, tensor: Tensor, *, factored: bool) -> None:
        """Adds a block to what the kernels do, or to what they do not support."""
        if isinstance(form, str):
            self.unsupported = {index: form, **self.unsupported}
            return
        position, run = len(found.matrices), self._added_at_once(form)
        column_count = (form.segments.size - 1) * (form.width // run.run)
        row_sums = self._reserve(form.rows) if form.row_terms else -1
        column_sums = self._reserve(column_count) if form.column_terms else -1
        tiles = self._tiles(form, position, tensor.numel(), run.run)
        ends = found.tile_count, found.tile_count + len(tiles)
        sums = (row_sums, column_sums, column_count, *ends, run.run)
        found.matrices.append((tensor.data_ptr(), form.rows, form.width, TYPES[tensor.dtype], 0, *sums))
        found.tiles.append(tiles)
        found.tile_count = ends[1]
        self.members.append(index)
        self.forms.append(form)
        if factored:
            self._factored.append((position, index))
        layer_weight = math.exp(self.program.log_weights.numpy()[index])
        for source, terms in ((row_sums, form.row_terms), (column_sums, condensed(form, run).column_terms)):
            for coefficient, ids in terms:
                slots = self._slots_of(ids, coefficient)
                weight = layer_weight * (1 if math.isinf(self.program.p) else abs(coefficient))
                found.links.append((source, slots.size, slots.ctypes.data, weight))
        found.link_ends.append(len(found.links))

    def run(self, library: ctypes.CDLL, factors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor] | None:
        """Returns (K,) log N and log P of `members`; None where powers have left the range of float64."""
        alive = self.take_factors(factors)
        count = self.program.num_scales
        out = torch.empty(2 * count + 1, dtype=torch.float64, device="cpu")
        lost = library.fxenorm_reduce(
            *(self.matrices.ctypes.data, len(self.matrices), self.tiles.ctypes.data, len(self.tiles)),
            *(self.links.ctypes.data, len(self.links), self.work.ctypes.data, out.data_ptr(), out.numel(), self.program.p),
            1 if self.single_thread else torch.get_num_threads(),
        )
        del alive
        if lost:
            return None
        if _LINEAR_UP_TO < self.program.p < math.inf:
            out.mul_(math.log(2.0))
        else:
            out.log_()
        return out[:count], out[count : 2 * count]

    def take_factors(self, factors: Sequence[Tensor | None]) -> list[Tensor]:
        """Points the matrices to their rows' factors, which must be kept until the kernels are done."""
        given = [factors[index] for _, index in self._factored]
        if len(given) == len(self._pointed) and all(map(is_, given, self._pointed)):
            return []
        alive = [row_factors(values) for values in given if values is not None]
        for (matrix, _), rows in zip(self._factored, alive, strict=True):
            self.matrices[matrix, 4] = rows.data_ptr()
        # Those that are read where they are may come again, with other values.
        same = all(rows.data_ptr() == values.data_ptr() for rows, values in zip(alive, given, strict=True) if values is not None)
        self._pointed = given if same else []
        return alive

    def _reserve(self, count: int) -> int:
        """Reserves `count` float64 cells of the work array; returns the offset of the first."""
        self._size += count
        return self._size - count

    def _added_at_once(self, form: MatrixForm) -> Run:
        """Returns the columns side by side whose sums each tile adds up, so that fewer are kept; logarithms are not added."""
        run, cut_by_columns = run_of(form), form.width > 1.5 * _SUMMED_COLUMNS
        none = not form.column_terms or not run.inner or cut_by_columns or _LINEAR_UP_TO < self.program.p < math.inf
        return Run(1, inner=True) if none else run

    def _tiles(self, form: MatrixForm, matrix: int, entries: int, run: int) -> NDArray[np.int64]:
        """Returns (tiles, 9) the tiles of a table, with places in the work array for their partial sums."""
        cuts = cut(form, min(_LARGEST_TILE, max(_SMALLEST_TILE, entries // _TILES)), _SUMMED_COLUMNS)
        found = np.empty((len(cuts), 9), dtype=np.int64)
        found[:, 0], found[:, 1:6], found[:, 6:8], found[:, 8] = matrix, cuts, -1, _shares(cuts, matrix)
        for column, sizes, wanted in ((6, found[:, 2], form.row_terms), (7, found[:, 4] // run, form.column_terms)):
            if wanted:
                ends = np.cumsum(sizes)
                found[:, column] = self._reserve(int(ends[-1])) + ends - sizes
        return found

    def _slots_of(self, ids: NDArray[np.int32], coefficient: int) -> NDArray[np.int32]:
        """Returns by id the slot to which a term's sums go, and keeps it alive: N, P behind it, and a last one for "fixed"."""
        count = self.program.num_scales
        slots = np.where(ids >= count, 2 * count, ids + (count if coefficient > 0 else 0)).astype(np.int32)
        self._slots.append(slots)
        return slots


class _ReduceRows:
    """The rows of a `ReduceTable` while they are collected."""

    def __init__(self) -> None:
        self.matrices: list[tuple[int, ...]] = []
        self.tiles: list[NDArray[np.int64]] = []
        self.links: list[tuple[int | float, ...]] = []
        self.link_ends: list[int] = []
        self.tile_count = 0

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """Returns matrices, tiles and links as the kernels read them."""
        fields = [("source", "i8"), ("count", "i8"), ("slots", "i8"), ("weight", "f8")]
        tiles = np.concatenate(self.tiles) if self.tiles else np.zeros((0, 9), dtype=np.int64)
        return np.array(self.matrices, dtype=np.int64).reshape(-1, 11), tiles, np.array(self.links, dtype=fields)


class _ScaleRows:
    """The rows of a `ScaleTable` while they are collected."""

    def __init__(self) -> None:
        self.matrices: list[tuple[int, ...]] = []
        self.ends: list[tuple[float, float]] = []
        self.tiles: list[NDArray[np.int64]] = []
        self.links: list[tuple[int, ...]] = []
        self.places: dict[Hashable, tuple[int, int]] = {}
        self.size = 0

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Returns matrices, tiles and links as the kernels read them."""
        matrices = np.array(self.matrices, dtype=np.int64).reshape(-1, 7)
        matrices[:, 5:] = np.array(self.ends, dtype=np.float64).reshape(-1, 2).view(np.int64)
        tiles = np.concatenate(self.tiles) if self.tiles else np.zeros((0, 7), dtype=np.int64)
        return matrices, tiles, np.array(self.links, dtype=np.int64).reshape(-1, 5)


class ScaleTable:
    """All tensors that follow a rescaling at their present places.

    Args:
        targets: what is multiplied.
        counted: names of those of which sums have just been taken.

    Attributes:
        unsupported: the targets that the kernels cannot do; `refusals`: why.
        members: those that they can, in the order of `matrices`.
        matrices, tiles, links: the arrays that the kernels read.
        just_read: by matrix, whether it is one of those in `counted`.
        exponents: by power of a variable's factor that the links need, its number.
        factors: the array for the factors of rows and columns; `done`: that for the rows that are done, by tile.
        single_thread: whether one thread is enough.
    """

    def __init__(self, targets: Sequence[ScaleTarget], counted: frozenset[str]) -> None:
        self._targets, self._counted = targets, counted
        self._tensors = [target.tensor for target in targets]
        self._signature = _places(self._tensors)
        self.unsupported: list[ScaleTarget] = []
        self.refusals: list[str] = []
        self.members: list[ScaleTarget] = []
        self.exponents: dict[int, int] = {}
        self._forms: dict[Hashable, MatrixForm | None] = {}
        found = _ScaleRows()
        for target in self._in_order():
            form = COVERAGE.target_form(target, self._forms)
            if isinstance(form, str):
                self.unsupported.append(target)
                self.refusals.append(form)
            else:
                self._add(found, target, form)
        self.matrices, self.tiles, self.links = found.arrays()
        self.just_read = np.array([target.name in counted for target in self.members], dtype=bool)
        self.done = np.zeros(len(self.tiles), dtype=np.int64)
        self.factors = np.empty(found.size, dtype=np.float64)
        self.single_thread = sum(target.tensor.numel() for target in self.members) <= _SINGLE_THREAD_UP_TO
        unsupported = {id(target) for target in self.unsupported}
        self._written = written([target for target in targets if id(target) not in unsupported])

    def _in_order(self) -> list[ScaleTarget]:
        """Returns the targets that there is something to do for, as they are scaled.

        What the sums were just taken of is still in the cache: it comes first, from where the reading ended. Of the rest, what
        the optimizer needs first comes last.
        """
        first = [target for target in self._targets if target.name in self._counted]
        rest = [target for target in reversed(self._targets) if target.name not in self._counted]
        return [target for target in (*first, *rest) if target.terms and target.tensor.numel()]

    def _add(self, found: _ScaleRows, target: ScaleTarget, form: MatrixForm) -> None:
        """Adds a target that has a table; those that move alike share their factors."""
        tensor, position = target.tensor, len(found.matrices)
        alike = (*likeness(target), target.power)
        place = found.places.get(alike)
        if place is None:
            place = found.places[alike] = (
                self._link(found, form.row_terms, target.power),
                self._link(found, form.column_terms, target.power),
            )
        cuts = cut(form, _SCALED_TILE, _SCALED_TILE)
        found.tiles.append(np.column_stack([np.full(len(cuts), position), cuts, _shares(cuts, position)]))
        found.matrices.append((tensor.data_ptr(), form.width, TYPES[tensor.dtype], *place, 0, 0))
        kept, whole, largest = ends_of(target)
        # What may have to be undone must not have lost digits, and of float16 many entries are near their end.
        loses = target.keep == Keep.ENTRIES and tensor.dtype != torch.float16
        found.ends.append((kept if loses else whole, largest))
        self.members.append(target)

    def _link(self, found: _ScaleRows, terms: Sequence[tuple[int, NDArray[np.int32]]], power: int) -> int:
        """Adds the links that make the factors of rows or of columns; returns where these begin, -1 where there are none."""
        if not terms:
            return -1
        place, found.size = found.size, found.size + terms[0][1].size
        for number, (coefficient, ids) in enumerate(terms):
            exponent = self.exponents.setdefault(coefficient * power, len(self.exponents))
            found.links.append((place, ids.size, ids.ctypes.data, exponent, int(number == 0)))
        return place

    def serves(self, targets: Sequence[ScaleTarget], counted: frozenset[str]) -> bool:
        """Whether this is the table of that very list, and its tensors lie where they did."""
        return self._targets is targets and self._counted == counted and self._signature == _places(self._tensors)

    def exchange(self, pairs: Sequence[tuple[ScaleTarget, ScaleTarget]]) -> None:
        """Takes other tensors in the places of some targets: of the same shape, strides, type and exponents."""
        rows = {id(target): row for row, target in enumerate(self.members)}
        for before, after in pairs:
            row = rows.get(id(before))
            if row is not None:  # what has no entries has no row
                self.members[row] = after
                self.matrices[row, 0] = after.tensor.data_ptr()

    def run(self, library: ctypes.CDLL, log_scales: Tensor, *, within: bool) -> bool:
        """Multiplies; with `within`, unless an entry would leave its type's range: then nothing changes, and it is False."""
        if not len(self.tiles):
            return True
        table = log2_factors(log_scales)
        exponents = torch.tensor(list(self.exponents), dtype=torch.float64, device="cpu")
        powers = exact_exp2(exponents[:, None] * table)
        announce(self._written)
        return not library.fxenorm_scale(
            *(self.matrices.ctypes.data, self.tiles.ctypes.data, len(self.tiles)),
            *(self.links.ctypes.data, len(self.links), powers.data_ptr(), powers.shape[1]),
            *(self.factors.ctypes.data, int(within), self.done.ctypes.data),
            1 if self.single_thread else torch.get_num_threads(),
        )


def row_factors(values: Tensor) -> Tensor:
    """Returns (rows,) the factors of a table's rows, as the kernels read them."""
    return values.to(torch.float64).reshape(-1).contiguous()

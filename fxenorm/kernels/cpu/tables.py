"""Tables of addresses, shapes and ids for the compiled kernels; the structures are those of ``native/tables.h``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..factors import exact_exp2, log2_factors
from ..layout import MatrixForm, cut, matrix_form
from ..memory import has_plain_memory
from ..program import Block, Keep, ReduceProgram, ScaleTarget
from ..rooms import ends_of

__all__ = ["ReduceTable", "ScaleTable", "announce", "reduce_signature", "row_factors", "written"]

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_LINEAR_UP_TO, _MODERATE = 8.0, 300.0
"""Beyond these sums are taken in logarithms, eagerly: exponents p, and logarithms of layer weights.

Layer weights of up to exp(300) leave the kernels' sums, which are between 1e-170 and 1e170 or not used, in the range of float64.
"""

_SMALLEST_TILE, _LARGEST_TILE, _TILES, _SCALED_TILE = 1 << 17, 1 << 20, 8, 1 << 17
_SUMMED_COLUMNS = 20_000
"""Columns in a tile of a wide table: their sums stay in a core's own caches."""

_SHARES = 1 << 16
_FEW = 1 << 15
"""Entries that one thread handles faster than several would be woken."""

Signature = list[Any]


def reduce_signature(tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> Signature:
    """What a table of tensors depends on: where they lie, and how."""
    return [*_places(tensors), *(factor is None for factor in factors)]


def _places(tensors: Sequence[Tensor]) -> Signature:
    """By tensor, its address, its strides and its type. Addresses of all devices differ."""
    return [*map(_address, tensors), *map(Tensor.stride, tensors), *map(attrgetter("dtype"), tensors)]


def _address(tensor: Tensor) -> int:
    """Where a tensor's entries begin; 0 for those that have none."""
    return tensor.data_ptr() if has_plain_memory(tensor) else 0


def _shares(cuts: NDArray[np.int64], matrix: int) -> NDArray[np.int64]:
    """(tiles,) where in the tensor each tile lies; small tensors go to the first and to the last thread by turns."""
    if len(cuts) == 1:
        return np.array([_SHARES - 1 if matrix % 2 else 0])
    entries = cuts[:, 1] * cuts[:, 3]
    middle = np.cumsum(entries) - entries / 2
    shares: NDArray[np.int64] = np.minimum(middle / entries.sum() * _SHARES, _SHARES - 1).astype(np.int64)
    return shares


def _usable(tensor: Tensor) -> bool:
    """Whether the kernels can read and write a tensor."""
    return tensor.device.type == "cpu" and tensor.dtype in _TYPES and has_plain_memory(tensor)


class ReduceTable:
    """All counted tensors at their present places.

    Args:
        program: on the CPU.
        tensors, factors: as `Backend.reduce` takes them.
        signature: theirs.
        forms: their tables, where those are known.

    Attributes:
        left: positions of the blocks that the kernels cannot do.
        members: positions of those that they can, in the order of `matrices`; `forms`: their tables.
        matrices, tiles, links: the arrays that the kernels read; `link_ends`: by matrix, where its links end.
        few: whether one thread is enough.
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
        self.left: list[int] = []
        self.members: list[int] = []
        self.forms: list[MatrixForm] = []
        self._factors: list[tuple[int, int]] = []
        self._size = 0
        self._keep: list[NDArray[np.int32]] = []
        matrices: list[tuple[int, ...]] = []
        tiles: list[NDArray[np.int64]] = []
        links: list[tuple[int | float, ...]] = []
        linear = program.p <= _LINEAR_UP_TO or math.isinf(program.p)
        log_weights = program.log_weights.tolist()
        link_ends: list[int] = []
        entries = first = 0
        # From the last to the first: what an optimizer wrote last is still in the cache.
        given = list(enumerate(zip(program.blocks, tensors, factors, strict=True)))
        for index, (block, tensor, factor) in reversed(given):
            if not tensor.numel():
                continue
            form = _reduce_form(block, tensor, factor) if forms is None else forms[index]
            form = form if linear and abs(log_weights[index]) < _MODERATE else None
            if form is None:
                self.left.append(index)
                continue
            row_sums, column_sums, column_count = -1, -1, (form.segments.size - 1) * form.width
            if form.row_terms:
                row_sums = self._take(form.rows)
            if form.column_terms:
                column_sums = self._take(column_count)
            part = self._tiles(form, len(matrices), tensor.numel())
            address, kind = tensor.data_ptr(), _TYPES[tensor.dtype]
            sums = (row_sums, column_sums, column_count, first, first + len(part))
            matrices.append((address, form.rows, form.width, kind, 0, *sums))
            self.members.append(index)
            self.forms.append(form)
            if factor is not None:
                self._factors.append((len(matrices) - 1, index))
            for source, terms in ((row_sums, form.row_terms), (column_sums, form.column_terms)):
                for coefficient, ids in terms:
                    slots = self._slots(ids, coefficient)
                    weight = math.exp(log_weights[index]) * (1 if math.isinf(program.p) else abs(coefficient))
                    links.append((source, slots.size, slots.ctypes.data, weight))
            link_ends.append(len(links))
            tiles.append(part)
            first += len(part)
            entries += tensor.numel()
        self.left.reverse()
        self.matrices = np.array(matrices, dtype=np.int64).reshape(-1, 10)
        self.tiles = np.concatenate(tiles) if tiles else np.zeros((0, 9), dtype=np.int64)
        self.link_ends = np.array(link_ends, dtype=np.int64)
        self.links = np.zeros(len(links), dtype=[("source", "i8"), ("count", "i8"), ("slots", "i8"), ("weight", "f8")])
        for position, link in enumerate(links):
            self.links[position] = link
        self.work = np.empty(self._size, dtype=np.float64)
        self.few = entries <= _FEW

    def run(self, library: ctypes.CDLL, factors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor] | None:
        """(K,) log N and log P of the blocks that are not left; None where powers have left the range of float64."""
        alive = self.take_factors(factors)
        count = self.program.num_scales
        out = torch.empty(2 * count + 1, dtype=torch.float64, device="cpu")
        lost = library.fxenorm_reduce(
            *(self.matrices.ctypes.data, len(self.matrices), self.tiles.ctypes.data, len(self.tiles)),
            *(self.links.ctypes.data, len(self.links), self.work.ctypes.data, out.data_ptr(), out.numel(), self.program.p),
            1 if self.few else torch.get_num_threads(),
        )
        del alive
        if lost:
            return None
        out.log_()
        return out[:count], out[count : 2 * count]

    def take_factors(self, factors: Sequence[Tensor | None]) -> list[Tensor]:
        """Points the matrices to their rows' factors, which must be kept until the kernels are done."""
        alive = []
        for matrix, index in self._factors:
            values = factors[index]
            if values is not None:
                alive.append(row_factors(values))
                self.matrices[matrix, 4] = alive[-1].data_ptr()
        return alive

    def _take(self, count: int) -> int:
        """A place for some sums."""
        self._size += count
        return self._size - count

    def _tiles(self, form: MatrixForm, matrix: int, entries: int) -> NDArray[np.int64]:
        """(tiles, 9) the table's tiles with places for their partial sums."""
        cuts = cut(form, min(_LARGEST_TILE, max(_SMALLEST_TILE, entries // _TILES)), _SUMMED_COLUMNS)
        found = np.empty((len(cuts), 9), dtype=np.int64)
        found[:, 0], found[:, 1:6], found[:, 6:8], found[:, 8] = matrix, cuts, -1, _shares(cuts, matrix)
        for column, size, wanted in ((6, 2, form.row_terms), (7, 4, form.column_terms)):
            if wanted:
                ends = np.cumsum(found[:, size])
                found[:, column] = self._take(int(ends[-1])) + ends - found[:, size]
        return found

    def _slots(self, ids: NDArray[np.int32], coefficient: int) -> NDArray[np.int32]:
        """Where the sums of a term go."""
        count = self.program.num_scales
        slots = np.where(ids >= count, 2 * count, ids + (count if coefficient > 0 else 0)).astype(np.int32)
        self._keep.append(slots)
        return slots


def _reduce_form(block: Block, tensor: Tensor, factor: Tensor | None) -> MatrixForm | None:
    """A block's table, where it has one."""
    if block.collided is not None or block.offset or not _usable(tensor):
        return None
    form = matrix_form(block.shape, tensor.stride(), block.terms)
    if form is None or factor is None:
        return form
    sizes = [axis for axis, size in enumerate(factor.shape) if size > 1]
    along_rows = sizes == list(form.row_axes) and factor.ndim == tensor.ndim
    return form if along_rows and factor.device.type == "cpu" else None


class ScaleTable:
    """All tensors that follow a rescaling at their present places.

    Args:
        targets: what is multiplied.
        read: names of those of which sums have just been taken.

    Attributes:
        left: the targets that the kernels cannot do.
        members: those that they can, in the order of `matrices`.
        matrices, tiles, links: the arrays that the kernels read.
        just_read: by matrix, whether it is one of those in `read`.
        exponents: by power of a variable's factor that the links need, its number.
        few: whether one thread is enough.
    """

    def __init__(self, targets: Sequence[ScaleTarget], read: frozenset[str]) -> None:
        self._targets, self._read = targets, read
        self._tensors = [target.tensor for target in targets]
        self._signature = _places(self._tensors)
        self.left: list[ScaleTarget] = []
        self.members: list[ScaleTarget] = []
        self.exponents: dict[int, int] = {}
        self._keep: list[MatrixForm] = []
        places: dict[tuple[Any, ...], tuple[int, int]] = {}
        forms: dict[tuple[Any, ...], MatrixForm | None] = {}
        matrices: list[tuple[int, ...]] = []
        links: list[tuple[int, ...]] = []
        ends: list[tuple[float, float]] = []
        tiles: list[NDArray[np.int64]] = []
        size = entries = 0
        # What the sums were just taken of is still in the cache: it comes first, from where the reading ended. Of the rest, what
        # the optimizer needs first comes last.
        first = [target for target in targets if target.name in read]
        for target in (*first, *(target for target in reversed(targets) if target.name not in read)):
            tensor = target.tensor
            if not target.terms or not tensor.numel():
                continue
            key = (id(target.terms), tuple(tensor.shape), tensor.stride())
            if key not in forms:
                forms[key] = matrix_form(tensor.shape, tensor.stride(), target.terms) if _usable(tensor) else None
            form = forms[key] if _usable(tensor) and not target.offset else None
            if form is None:
                self.left.append(target)
                continue
            wanted = (*key, target.power)
            place = places.get(wanted)
            if place is None:
                sides = []
                for terms in (form.row_terms, form.column_terms):
                    for number, (coefficient, ids) in enumerate(terms):
                        exponent = self.exponents.setdefault(coefficient * target.power, len(self.exponents))
                        links.append((size, ids.size, ids.ctypes.data, exponent, int(number == 0)))
                    sides.append(size if terms else -1)
                    size += terms[0][1].size if terms else 0
                place = places[wanted] = (sides[0], sides[1])
                self._keep.append(form)
            cuts = cut(form, _SCALED_TILE, _SCALED_TILE)
            tiles.append(np.column_stack([np.full(len(cuts), len(matrices)), cuts, _shares(cuts, len(matrices))]))
            matrices.append((tensor.data_ptr(), form.width, _TYPES[tensor.dtype], *place, 0, 0))
            self.members.append(target)
            kept, whole, largest = ends_of(target)
            ends.append((kept if target.keep == Keep.ENTRIES else whole, largest))
            entries += tensor.numel()
        self.matrices = np.array(matrices, dtype=np.int64).reshape(-1, 7)
        self.matrices[:, 5:] = np.array(ends, dtype=np.float64).reshape(-1, 2).view(np.int64)
        self.just_read = np.array([target.name in read for target in self.members], dtype=bool)
        self.links = np.array(links, dtype=np.int64).reshape(-1, 5)
        self.tiles = np.concatenate(tiles) if tiles else np.zeros((0, 7), dtype=np.int64)
        self.done = np.zeros(len(self.tiles), dtype=np.int64)
        self.factors = np.empty(size, dtype=np.float64)
        self.few = entries <= _FEW
        left = {id(target) for target in self.left}
        self._written = written([target for target in targets if id(target) not in left])

    def serves(self, targets: Sequence[ScaleTarget], read: frozenset[str]) -> bool:
        """Whether this is the table of that very list, and its tensors lie where they did."""
        return self._targets is targets and self._read == read and self._signature == _places(self._tensors)

    def run(self, library: ctypes.CDLL, log_scales: Tensor, *, careful: bool) -> bool:
        """Multiplies; with `careful`, unless an entry would leave its type's range: then nothing changes, and it is False."""
        if not len(self.tiles):
            return True
        table = log2_factors(log_scales)
        exponents = torch.tensor(list(self.exponents), dtype=torch.float64, device="cpu")
        powers = exact_exp2(exponents[:, None] * table)
        announce(self._written)
        return not library.fxenorm_scale(
            *(self.matrices.ctypes.data, self.tiles.ctypes.data, len(self.tiles)),
            *(self.links.ctypes.data, len(self.links), powers.data_ptr(), powers.shape[1]),
            *(self.factors.ctypes.data, int(careful), self.done.ctypes.data),
            1 if self.few else torch.get_num_threads(),
        )


def row_factors(values: Tensor) -> Tensor:
    """(rows,) the factors of a table's rows, as the kernels read them."""
    return values.to(torch.float64).reshape(-1).contiguous()


def written(targets: Sequence[ScaleTarget]) -> list[Tensor]:
    """The tensors whose changes autograd keeps count of."""
    return [target.tensor for target in targets if not target.tensor.is_inference()]


def announce(tensors: Sequence[Tensor]) -> None:
    """Tells autograd what is written: a backward pass through the old values would be wrong."""
    torch.autograd.graph.increment_version(tensors)

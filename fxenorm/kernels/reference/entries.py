"""Single entries of tensors for a large p: the largest of each channel, and those above some value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..backend import FoundEntries
from ..parts import Index, part_of, parts_of
from ..program import Block, ReduceProgram, float_dtype
from .channel_sums import expanded, is_linear, shifts_of
from .sizes import are_in_range, sizes_of

__all__ = ["ROUNDING", "entries_above", "largest_entries"]

ROUNDING = 1e-9
"""What a value is lowered by where weights are compared without logarithms, far more than rounding changes them."""


@torch.no_grad()
def entries_above(
    program: ReduceProgram, matrices: Sequence[Tensor], log_scales: Tensor, least: Tensor
) -> Iterator[FoundEntries]:
    """Yields the entries above a value after a rescaling, a part at a time; see `ObjectiveSums.entries_above`."""
    for number, matrix, scales, values in _on_device(matrices, log_scales, least):
        block = program.to(matrix.device).blocks[number]
        if block.terms:
            for positions in _parts_above(program.p, block, matrix, scales, values - _log_weight(program, number)):
                yield _described(program, number, matrix, positions)


@torch.no_grad()
def largest_entries(program: ReduceProgram, matrices: Sequence[Tensor], log_scales: Tensor, count: int) -> Iterator[FoundEntries]:
    """Yields so many of the largest entries of each channel of each tensor; see `ObjectiveSums.largest_entries`."""
    for number, matrix, scales, _ in _on_device(matrices, log_scales, log_scales):
        block = program.to(matrix.device).blocks[number]
        yield _described(program, number, matrix, _largest(program.p, block, matrix, scales, count))


def _on_device(matrices: Sequence[Tensor], log_scales: Tensor, least: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yields the number of each matrix, the matrix, and two vectors on its device, which take one copy a device."""
    known: dict[torch.device, tuple[Tensor, Tensor]] = {}
    for number, matrix in enumerate(matrices):
        if matrix.device not in known:
            known[matrix.device] = log_scales.to(matrix.device), least.to(matrix.device)
        yield number, matrix, *known[matrix.device]


def _log_weight(program: ReduceProgram, number: int) -> float:
    """Returns the log of a tensor's layer weight, as a factor of its entries; 0 for p = inf, which has none."""
    return 0.0 if math.isinf(program.p) else float(program.log_weights[number]) / program.p


def _largest(p: float, block: Block, matrix: Tensor, log_scales: Tensor, count: int) -> Tensor:
    """Returns the positions of the `count` largest entries of each channel after a rescaling.

    Args:
        p: the norm's exponent.
        block: the tensor's terms.
        matrix: as `power_matrix` returns it.
        log_scales: (K,) natural logarithms, on the matrix's device.
        count: how many of each position of each term.

    Returns:
        (n,) int64 flat positions in the matrix, in rising order.
    """
    sides = [[axis for axis, size in enumerate(ids.shape) if size > 1] for _, ids in block.terms]
    shifts = shifts_of(math.inf, block, log_scales)
    by_size = are_in_range(matrix, shifts)
    kept = [_Largest(matrix, own, count, 0.0 if by_size else -math.inf) for own in sides]
    for index, part in sizes_of(matrix, shifts) if by_size else _shifted(p, matrix, shifts_of(p, block, log_scales)):
        for one in kept:
            one.add(index, part)
    nothing = torch.zeros(0, dtype=torch.int64, device=matrix.device)
    found: Tensor = torch.unique(torch.cat([nothing, *(one.places() for one in kept)]))
    return found


def _logarithms(p: float, matrix: Tensor) -> Tensor:
    """Returns a matrix, or a part of it, as logarithms of |w|^p, whatever it holds; for p = inf of |w|."""
    found = expanded(p, matrix)
    return found.log() if is_linear(p) else found


def _shifted(p: float, matrix: Tensor, shifts: Sequence[Tensor]) -> Iterator[tuple[Index, Tensor]]:
    """Yields these logarithms after a rescaling, a part at a time; `shifts` are those of |w|^p by term."""
    for index in parts_of(matrix):
        part = _logarithms(p, matrix[index])
        for shift in shifts:
            part = part + part_of(shift, index)
        yield index, part


class _Largest:
    """The largest entries of each position along some axes, of a tensor that comes a part at a time; none that are `nothing`."""

    def __init__(self, matrix: Tensor, axes: list[int], count: int, nothing: float) -> None:
        self._nothing = nothing
        self._shape, self._axes = matrix.shape, axes
        self._others = [axis for axis in range(matrix.ndim) if axis not in axes]
        self._count = min(count, math.prod(matrix.shape[axis] for axis in self._others))
        shape = [*(matrix.shape[axis] for axis in axes), self._count]
        self._sizes = torch.full(shape, nothing, dtype=float_dtype(matrix.device), device=matrix.device)
        self._places = torch.full(shape, -1, dtype=torch.int64, device=matrix.device)

    def add(self, index: Index, part: Tensor) -> None:
        """Looks at a part."""
        own = tuple(index[axis] if axis < len(index) else slice(None) for axis in self._axes)
        line = part.permute([*self._axes, *self._others]).reshape(*(part.shape[axis] for axis in self._axes), -1)
        sizes, at = line.topk(min(self._count, line.shape[-1]))
        places = self._flat(index, part, at)
        if sizes.shape[-1] == self._count and line.shape[-1] == math.prod(self._shape[axis] for axis in self._others):
            self._sizes[own], self._places[own] = sizes, places
            return
        sizes, places = torch.cat([self._sizes[own], sizes], -1), torch.cat([self._places[own], places], -1)
        sizes, at = sizes.topk(self._count)
        self._sizes[own], self._places[own] = sizes, places.gather(-1, at)

    def _flat(self, index: Index, part: Tensor, at: Tensor) -> Tensor:
        """Returns positions in the whole of those in the lines of a part."""
        starts = [(index[axis].start or 0) if axis < len(index) else 0 for axis in range(part.ndim)]
        strides = [math.prod(self._shape[axis + 1 :]) for axis in range(part.ndim)]
        places = torch.full_like(at, sum(start * stride for start, stride in zip(starts, strides, strict=True)))
        wide = [axis for axis in reversed(self._others) if part.shape[axis] > 1]
        for axis in wide:
            places += (at if axis == wide[-1] else at % part.shape[axis]) * strides[axis]
            at = at if axis == wide[-1] else at // part.shape[axis]
        for place, axis in enumerate(self._axes):
            along = torch.arange(part.shape[axis], dtype=torch.int64, device=part.device) * strides[axis]
            places += along.reshape(-1, *[1] * (at.ndim - place - 1))
        return places

    def places(self) -> Tensor:
        """Returns the (n,) positions that were found."""
        return self._places[self._sizes > self._nothing]


def _parts_above(p: float, block: Block, matrix: Tensor, log_scales: Tensor, least: Tensor) -> Iterator[Tensor]:
    """Yields the flat positions, part by part, of the entries above a value after a rescaling; waits for the device.

    Args:
        p, block, matrix, log_scales: as `_largest` takes them.
        least: (K,) values by variable, as logarithms of a weight: an entry is to be above the least of those of its variables.
    """
    padded = torch.nn.functional.pad(least, (0, 1), value=math.inf)
    bounds = [padded[ids] for _, ids in block.terms]
    strides = [math.prod(matrix.shape[axis + 1 :]) for axis in range(matrix.ndim)]
    for index, part, own_bounds in _with_bounds(p, block, matrix, log_scales, bounds):
        above = torch.zeros_like(part, dtype=torch.bool)
        for bound in own_bounds:
            above |= part > part_of(bound, index)
        places = _places_of(above)
        if len(places):
            # A part has no gaps in the order of the axes, so its positions follow one another from that of its first entry.
            yield places + sum((piece.start or 0) * stride for piece, stride in zip(index, strides, strict=False))


def _places_of(mask: Tensor) -> Tensor:
    """Returns the (n,) flat positions where a mask is set; on a CPU by NumPy, which is the faster where few are."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero()[:, 0]


def _with_bounds(
    p: float, block: Block, matrix: Tensor, log_scales: Tensor, bounds: Sequence[Tensor]
) -> Iterator[tuple[Index, Tensor, Sequence[Tensor]]]:
    """Yields a matrix after a rescaling, a part at a time, and by term what it is to be compared with.

    Weights are compared as they are, without a logarithm, where their products with all factors surely are in range.
    """
    shifts = shifts_of(math.inf, block, log_scales)
    if are_in_range(matrix, shifts):
        sizes = [(bound - ROUNDING).exp() for bound in bounds]
        for index, part in sizes_of(matrix, shifts):
            yield index, part, sizes
        return
    times = 1.0 if math.isinf(p) else p
    for index, part in _shifted(p, matrix, [times * shift for shift in shifts]):
        yield index, part, [times * bound for bound in bounds]


def _described(program: ReduceProgram, number: int, matrix: Tensor, positions: Tensor) -> FoundEntries:
    """Returns the exponents and the logarithms of some entries of one tensor, of kernels for finite p the log of their p-norm.

    Args:
        program: the objective.
        number: of the tensor.
        matrix: its own.
        positions: (n,) flat positions in it.
    """
    p, block = program.p, program.to(matrix.device).blocks[number]
    strides = [math.prod(matrix.shape[axis + 1 :]) for axis in range(matrix.ndim)]
    places = [positions // stride % size if size > 1 else None for stride, size in zip(strides, matrix.shape, strict=True)]
    logs = _logarithms(p, matrix.take(positions)) / (1.0 if math.isinf(p) else p)
    ids = [_at_places(term, places, positions) for _, term in block.terms]
    stacked = torch.stack(ids, -1) if ids else positions.new_zeros((len(positions), 0))
    known = torch.where(stacked == program.num_scales, -1, stacked).cpu().numpy()
    coefficients = np.array([value for value, _ in block.terms], dtype=np.int64)
    return known, np.broadcast_to(coefficients, known.shape), logs.double().cpu().numpy() + _log_weight(program, number)


def _at_places(term: Tensor, places: Sequence[Tensor | None], positions: Tensor) -> Tensor:
    """Returns (n,) the ids of a term, which may be broadcast, at places by axis; None: the only one."""
    found, stride = torch.zeros_like(positions), 1
    for place, size in zip(reversed(places), reversed(term.shape), strict=True):
        if size > 1 and place is not None:
            found += place * stride
        stride *= size
    return term.reshape(-1)[found]

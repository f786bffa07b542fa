"""From one tensor to its channel sums in plain PyTorch, in parts that stay in cache.

For p <= 4 sums are taken of |w|^p itself; beyond that 1e-45 ** p, for some p and rescalings, leaves float64, and logarithms are
added instead; p = inf takes maxima of logarithms.

Matrices that are kept are in float64 where that is small beside the weights, as for kernels of 3 x 3. Where an entry is a single
weight of 32 bits or fewer, the weight itself stands for its matrix, and becomes |w|^p in float64 a part at a time: nothing of
its size is ever added to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..parts import Index, part_of, parts_of, rows_of
from ..program import LINEAR_UP_TO, Block, ChannelSums, ReduceProgram, float_dtype
from .sizes import are_in_range, log_maxima, narrow_product

__all__ = [
    "channel_sums",
    "contributions",
    "energy",
    "expanded",
    "has_two_sides",
    "has_zeros",
    "is_full",
    "is_linear",
    "is_narrow",
    "is_zero",
    "power_matrix",
    "powers_of_maxima",
    "resized",
    "shifted_parts",
    "shifts_of",
    "sides_of",
    "streamed_contributions",
    "table_of",
    "table_products",
]

_SMALL = 1 << 12
"""Up to this many entries a matrix is kept in float64 anyway: 32 KiB, which matter to no model."""

_LITTLE = 1 << 16
"""Up to this many entries room does not matter: 512 KiB of float64 a tensor."""


def power_matrix(p: float, block: Block, tensor: Tensor, factor: Tensor | None) -> Tensor:
    """Returns |w * factor|^p summed over the kernel axes, size 1 there; logarithms where p > 4; or the weight, see `expanded`."""
    if _is_kept_narrow(block, tensor):
        return tensor.detach() if factor is None else narrow_product(tensor.detach(), factor)
    shape = torch.Size(1 if axis in block.kernel_axes else size for axis, size in enumerate(tensor.shape))
    matrix = neutral(p, shape, tensor.device)
    for index in parts_of(tensor):
        accumulate_(p, part_of(matrix, index), _part_powers(p, block, tensor, factor, index))
    return matrix


def _is_kept_narrow(block: Block, tensor: Tensor) -> bool:
    """Whether float64 powers would take more room than the weights."""
    wide = float_dtype(tensor.device)
    if block.offset or tensor.is_complex():
        return False
    if tensor.dtype == wide or wide != torch.float64 or tensor.numel() <= _SMALL:
        return False
    return all(tensor.shape[axis] == 1 for axis in block.kernel_axes)


def is_narrow(matrix: Tensor) -> bool:
    """Whether a matrix holds weights rather than powers or logarithms."""
    return matrix.dtype != float_dtype(matrix.device)


def is_full(block: Block, matrix: Tensor) -> bool:
    """Whether a matrix holds a power or logarithm for each of many weights: another like it would need as much room again."""
    return not is_narrow(matrix) and matrix.numel() == math.prod(block.shape) > _LITTLE


def resized(p: float, other: float, matrix: Tensor) -> Tensor:
    """Returns a matrix of powers or logarithms for another exponent."""
    share = other / p
    if is_linear(p):
        return matrix**share if is_linear(other) else share * matrix.log()
    return (share * matrix).exp_() if is_linear(other) else share * matrix


def powers_of_maxima(p: float, block: Block, logs: Tensor, times: float = 1.0) -> Tensor:
    """Returns a matrix of logarithms, as p = inf has it or so many times that, for a finite p; a large one as float32 weights."""
    if is_narrow(logs):
        return logs
    if not is_full(block, logs):
        powers = (p / times) * logs
        return powers.exp_() if is_linear(p) else powers
    narrow = torch.empty_like(logs, dtype=torch.float32)
    for index in parts_of(logs):
        narrow[index] = (logs[index] / times).exp_().clamp_(max=torch.finfo(torch.float32).max)
    return narrow


def is_zero(p: float, matrix: Tensor) -> Tensor:
    """Returns which entries of a matrix stand for a weight of zero."""
    return matrix == (0 if is_linear(p) or is_narrow(matrix) else -math.inf)


def has_zeros(p: float, matrix: Tensor) -> bool:
    """Whether any entry of a matrix stands for a weight of zero; looks a part at a time, and waits for the device."""
    if is_linear(p) or is_narrow(matrix):
        return not all(bool(matrix[index].all()) for index in parts_of(matrix))
    return any(bool(is_zero(p, matrix[index]).any()) for index in parts_of(matrix))


def expanded(p: float, matrix: Tensor) -> Tensor:
    """Returns a matrix, or a part of it, as powers or logarithms in the wide type; the same tensor where it is that already."""
    return powers_(p, matrix.to(float_dtype(matrix.device))) if is_narrow(matrix) else matrix


def contributions(p: float, block: Block, matrix: Tensor, log_scales: Tensor | None = None) -> Iterator[Tensor]:
    """Yields the logs of one tensor's channel sums, in the order of the program's slots.

    Args:
        p: the norm's exponent.
        block: the tensor's terms.
        matrix: as `power_matrix` returns it.
        log_scales: (K,) a rescaling to be imagined, or None.
    """
    shifts = [] if log_scales is None else shifts_of(p, block, log_scales)
    if is_linear(p) and has_two_sides(block) and (shifts or is_narrow(matrix)):
        yield from _two_sides(p, block, matrix, shifts)
    elif math.isinf(p) and block.collided is None and are_in_range(matrix, shifts):
        yield from log_maxima(block, matrix, shifts)
    else:
        yield from _accumulated(p, block, matrix.shape, matrix.device, shifted_parts(p, matrix, shifts))


def shifted_parts(p: float, matrix: Tensor, shifts: Sequence[Tensor]) -> Iterator[tuple[Index, Tensor]]:
    """Yields a matrix after a rescaling, a part at a time, as powers or logarithms; see `shifts_of`."""
    factors = [shift.exp() for shift in shifts] if is_linear(p) else list(shifts)
    for index in parts_of(matrix):
        part = expanded(p, matrix[index])
        for factor in factors:
            part = part * part_of(factor, index) if is_linear(p) else part + part_of(factor, index)
        yield index, part


def streamed_contributions(p: float, block: Block, tensor: Tensor, factor: Tensor | None) -> Iterator[Tensor]:
    """Yields `contributions` of a tensor as it is, without its matrix ever being there as a whole."""
    if block.collided is not None and block.kernel_axes:
        # Which entries collide is known of the matrix, not of the tensor.
        yield from contributions(p, block, power_matrix(p, block, tensor, factor))
        return
    shape = torch.Size(1 if axis in block.kernel_axes else size for axis, size in enumerate(tensor.shape))
    parts = ((index, _part_powers(p, block, tensor, factor, index)) for index in parts_of(tensor))
    yield from _accumulated(p, block, shape, tensor.device, parts)


def _accumulated(
    p: float, block: Block, shape: torch.Size, device: torch.device, parts: Iterable[tuple[Index, Tensor]]
) -> Iterator[Tensor]:
    """Yields logs of channel sums from a matrix of some shape that comes a part at a time."""
    totals = [neutral(p, ids.shape, device) for _, ids in block.terms]
    apart: Tensor | None = None
    for index, given in parts:
        matrix = given
        if block.collided is not None:
            matrix, apart = _without_collided(p, block.collided, shape, index, matrix, apart)
        for total, axes in zip(totals, block.term_axes, strict=True):
            accumulate_(p, part_of(total, index), reduce_axes(p, matrix, axes))
    for total in totals:
        yield _logs(p, total).reshape(-1)
    if apart is not None and block.collided_rows is not None:
        yield _logs(p, apart[block.collided_rows])


def _without_collided(
    p: float, collided: Tensor, shape: torch.Size, index: Index, part: Tensor, apart: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns a part without the entries at the collided positions of the whole, and these entries as far as they have come."""
    nothing = 0.0 if is_linear(p) else -math.inf
    count = part.numel()
    first = sum((piece.start or 0) * math.prod(shape[axis + 1 :]) for axis, piece in enumerate(index))
    places = collided - first
    # What lies in other parts goes to a place behind the last: no mask is turned into indices, which would wait for the device.
    places = torch.where((places >= 0) & (places < count), places, count)
    flat = torch.nn.functional.pad(part.reshape(-1), (0, 1), value=nothing)
    values = flat[places]
    flat = flat.index_fill(0, places, nothing)
    if apart is not None:
        values = apart + values if is_linear(p) else torch.maximum(apart, values)
    return flat[:-1].view(part.shape), values


def energy(p: float, block: Block, matrix: Tensor, log_scales: Tensor | None = None) -> Tensor:
    """Returns 0-d the log of the sum (p = inf: the largest) over a whole matrix, after a rescaling where given."""
    if block.collided is None and block.terms:
        logs = next(contributions(p, block, matrix, log_scales))
        return logs.amax() if math.isinf(p) else logs.logsumexp(0)
    shifts = [] if log_scales is None else shifts_of(p, block, log_scales)
    totals = [reduce_axes(p, part.reshape(-1), (0,)) for _, part in shifted_parts(p, matrix, shifts)]
    return _logs(p, reduce_axes(p, torch.cat(totals), (0,))).reshape(())


def is_linear(p: float) -> bool:
    """Whether matrices hold powers rather than their logarithms."""
    return p <= LINEAR_UP_TO


def _part_powers(p: float, block: Block, tensor: Tensor, factor: Tensor | None, index: Index) -> Tensor:
    """Returns |w * factor|^p of a part, its offset added to w first, summed over the kernel axes."""
    if math.isinf(p) and block.kernel_axes and not block.offset and not tensor.is_complex():
        # One logarithm a kernel, not one an entry: the largest product is that of the largest entry.
        uniform = factor is None or all(factor.shape[axis] == 1 for axis in block.kernel_axes)
        if uniform:
            largest = tensor.detach()[index].abs().amax(block.kernel_axes, keepdim=True).to(float_dtype(tensor.device))
            return powers_(p, largest if factor is None else largest * part_of(factor, index))
    wide = _sizes(tensor.detach()[index], block.offset)
    if factor is not None:
        wide *= part_of(factor, index)
    return reduce_axes(p, powers_(p, wide), block.kernel_axes)


def _sizes(part: Tensor, offset: float) -> Tensor:
    """Returns a wide copy of a part, `offset` added; of complex numbers, their absolute values."""
    if offset:
        part = part.to(torch.promote_types(part.dtype, float_dtype(part.device))) + offset
        return part.abs() if part.is_complex() else part
    if part.is_complex():
        return part.to(torch.promote_types(part.dtype, float_dtype(part.device))).abs()
    return part.to(float_dtype(part.device), copy=True)


def powers_(p: float, values: Tensor) -> Tensor:
    """Turns values in place into |w|^p: powers where p is linear, else p log |w|; p = inf: log |w|."""
    if p == 2:
        return values.mul_(values)
    size = values.abs_()
    if not is_linear(p):
        size.log_()
        return size if math.isinf(p) else size.mul_(p)
    return size if p == 1 else size.pow_(p)


def reduce_axes(p: float, matrix: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the reduction over some axes, which stay with size 1: a sum, a log-sum or a maximum, by p."""
    if not axes:
        return matrix
    if is_linear(p):
        return matrix.sum(axes, keepdim=True)
    return matrix.amax(axes, keepdim=True) if math.isinf(p) else matrix.logsumexp(axes, keepdim=True)


def neutral(p: float, shape: torch.Size, device: torch.device) -> Tensor:
    """Returns totals of a shape to which nothing has been added: zeros, or logarithms of zero, by p."""
    return torch.full(shape, 0.0 if is_linear(p) else -math.inf, dtype=float_dtype(device), device=device)


def accumulate_(p: float, total: Tensor, share: Tensor) -> None:
    """Accumulates `share` into `total` in place: a sum, a log-sum or a maximum, by p."""
    if is_linear(p):
        total += share
    elif math.isinf(p):
        torch.maximum(total, share, out=total)
    else:
        torch.logaddexp(total, share, out=total)


def _logs(p: float, sums: Tensor) -> Tensor:
    """Returns sums as logarithms, whichever of both they were."""
    return sums.log() if is_linear(p) else sums


def shifts_of(p: float, block: Block, log_scales: Tensor) -> list[Tensor]:
    """Returns by term the logarithm of the factor by which a rescaling multiplies |w|^p."""
    padded = torch.nn.functional.pad(log_scales, (0, 1))
    return [(coefficient if math.isinf(p) else p * coefficient) * padded[ids] for coefficient, ids in block.terms]


def has_two_sides(block: Block) -> bool:
    """Whether the matrix is one of rows by columns, each with a variable of its own: most layers; or a stack of such matrices."""
    if len(block.terms) != 2 or block.collided is not None:
        return False
    columns, rows = block.term_axes
    axes = sorted((*columns, *rows, *block.kernel_axes))
    return axes == list(range(len(block.shape))) or (_is_stack(block) and axes == list(range(1, len(block.shape))))


def _is_stack(block: Block) -> bool:
    """Whether both terms vary along the first axis, and each along others of its own."""
    columns, rows = block.term_axes
    return bool(columns) and bool(rows) and 0 not in (*columns, *rows, *block.kernel_axes)


def sides_of(block: Block) -> tuple[Tensor, Tensor]:
    """Returns ids of rows and columns of `has_two_sides`: (rows,) and (columns,), or (matrices, rows) and (matrices, columns)."""
    (_, rows), (_, columns) = block.terms
    if _is_stack(block):
        return rows.reshape(block.shape[0], -1), columns.reshape(block.shape[0], -1)
    return rows.reshape(-1), columns.reshape(-1)


def table_of(block: Block, matrix: Tensor) -> Tensor:
    """Returns the matrix of `has_two_sides` as rows by columns, or (matrices, rows, columns)."""
    columns, rows = block.term_axes
    own, other = sides_of(block)
    stack = [0] if own.ndim == 2 else []
    return matrix.permute([*stack, *rows, *columns, *block.kernel_axes]).reshape(*own.shape, other.shape[-1])


def table_products(p: float, table: Tensor, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Returns table @ right and table.T @ left; a narrow table is widened a part at a time, which is read once for both."""
    if table.ndim == 3:
        table = expanded(p, table)
        return (table @ right[..., None])[..., 0], (table.mT @ left[..., None])[..., 0]
    if table.dtype == right.dtype:
        return table @ right, table.T @ left
    above = right.new_empty(table.shape[0])
    below = right.new_zeros(table.shape[1])
    for rows in rows_of(table):
        part = expanded(p, table[rows])
        torch.mv(part, right, out=above[rows])
        below.addmv_(part.T, left[rows])
    return above, below


def _two_sides(p: float, block: Block, matrix: Tensor, shifts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields `contributions` of rows by columns by two products of the matrix with a vector: nothing of its size is made."""
    wide = float_dtype(matrix.device)
    sides = sides_of(block)
    zeros = [torch.zeros(ids.shape, dtype=wide, device=matrix.device) for ids in sides]
    own, other = (shift.reshape(ids.shape) for shift, ids in zip(shifts or zeros, sides, strict=True))
    # The largest exponents are taken out first, so that none overflows.
    most_own, most_other = own.amax(-1, keepdim=True), other.amax(-1, keepdim=True)
    above, below = table_products(p, table_of(block, matrix), (other - most_other).exp(), (own - most_own).exp())
    yield (own + (above.log() + most_other)).reshape(-1)
    yield (other + (below.log() + most_own)).reshape(-1)


def channel_sums(program: ReduceProgram, logs: Tensor) -> ChannelSums:
    """Gathers by variable and sign the contributions that `Backend.contributions` returns."""
    count = program.num_scales
    totals = _combine(program, logs)
    return ChannelSums(totals[:count], totals[count : 2 * count])


def _combine(program: ReduceProgram, logs: Tensor) -> Tensor:
    """Returns (2 K + 1,) the log of each slot's sum; the largest is taken out first, so that no power leaves float64."""
    totals = logs.new_full((2 * program.num_scales + 1,), -math.inf)
    weighted = logs + program.offsets
    largest = totals.scatter_reduce(0, program.slots, weighted, "amax")
    if math.isinf(program.p):
        return largest
    reference = torch.where(largest.isfinite(), largest, 0.0)
    parts = (weighted - reference[program.slots]).exp()
    # index_put_ rather than index_add_: on GPUs it adds in a fixed order, so every run gives the same bits.
    sums = torch.zeros_like(totals).index_put_((program.slots,), parts, accumulate=True)
    return reference + sums.log()

"""From one tensor to its channel sums in plain PyTorch, in parts that stay in cache.

For p <= 8 sums are taken of |w|^p itself; beyond that 1e-40 ** p leaves float64, and logarithms are added instead; p = inf
takes maxima of logarithms.

Matrices that are kept are in float64 where that is small beside the weights, as for kernels of 3 x 3. Where an entry is a single
weight of 32 bits or fewer, |w| is kept in float32, which is exact, and becomes |w|^p in float64 a part at a time: so what is
kept is never larger than the weights in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .program import Block, float_dtype

__all__ = [
    "contributions",
    "energy",
    "expanded",
    "has_two_sides",
    "is_linear",
    "power_matrix",
    "row_blocks",
    "rows_of",
    "streamed_contributions",
    "table_of",
    "table_products",
]

_LINEAR_UP_TO = 8.0

_SMALL = 1 << 12
"""Up to this many entries a matrix is kept in float64 anyway."""

_PART_ON_CPU, _PART_ELSEWHERE = 1 << 17, 1 << 26
"""Entries at a time: on a CPU what its second-level cache holds in float64, elsewhere a bound on the temporaries."""


def row_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first axis with few enough entries each; one for all of a small tensor."""
    part = _PART_ON_CPU if tensor.device.type == "cpu" else _PART_ELSEWHERE
    if tensor.ndim == 0 or tensor.numel() <= part:
        yield slice(None)
        return
    rows = max(1, part * tensor.shape[0] // tensor.numel())
    for start in range(0, tensor.shape[0], rows):
        yield slice(start, start + rows)


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """The part of something that broadcasts to a tensor which belongs to some of the tensor's rows."""
    return tensor if tensor.ndim == 0 or tensor.shape[0] == 1 or rows == slice(None) else tensor[rows]


def power_matrix(p: float, block: Block, tensor: Tensor, factor: Tensor | None) -> Tensor:
    """|w * factor|^p summed over the kernel axes, size 1 there; logarithms where p > 8; or |w| in float32, see `expanded`."""
    if _is_kept_narrow(block, tensor, factor):
        return tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format).abs_()
    parts = [_powers(p, block, tensor, factor, rows) for rows in row_blocks(tensor)]
    if len(parts) == 1:
        return parts[0]
    if 0 not in block.kernel_axes:
        return torch.cat(parts)
    return _total(p, torch.cat(parts), (0,))


def _is_kept_narrow(block: Block, tensor: Tensor, factor: Tensor | None) -> bool:
    """Whether float64 powers would take more room than the weights, and |w| is exact in float32."""
    wide = float_dtype(tensor.device)
    if factor is not None or tensor.dtype == wide or wide != torch.float64 or tensor.numel() <= _SMALL:
        return False
    return all(tensor.shape[axis] == 1 for axis in block.kernel_axes)


def expanded(p: float, matrix: Tensor) -> Tensor:
    """A matrix, or a part of it, as powers or logarithms in the wide type; the same tensor where it is that already."""
    if matrix.dtype == float_dtype(matrix.device):
        return matrix
    return _raised(p, matrix.to(float_dtype(matrix.device)))


def contributions(p: float, block: Block, matrix: Tensor, log_scales: Tensor | None = None) -> Iterator[Tensor]:
    """The logs of one tensor's channel sums, in the order of the program's slots.

    Args:
        p: the norm's exponent.
        block: the tensor's terms.
        matrix: as `power_matrix` returns it.
        log_scales: (K,) a rescaling to be imagined, or None.
    """
    if log_scales is not None or matrix.dtype != float_dtype(matrix.device):
        shifts = _shifts(p, block, log_scales, matrix.device)
        if is_linear(p) and has_two_sides(block):
            yield from _two_sides(p, block, matrix, shifts)
            return
        matrix = _shifted(p, expanded(p, matrix), shifts)
    matrix = expanded(p, matrix)
    collided = None
    if block.collided is not None:
        matrix = matrix.clone(memory_format=torch.contiguous_format)
        flat = matrix.view(-1)
        collided = flat[block.collided]
        flat[block.collided] = 0.0 if is_linear(p) else -math.inf
    for axes in block.term_axes:
        yield _logs(p, _total(p, matrix, axes)).reshape(-1)
    if collided is not None and block.collided_rows is not None:
        yield _logs(p, collided[block.collided_rows])


def streamed_contributions(p: float, block: Block, tensor: Tensor, factor: Tensor | None) -> Iterator[Tensor]:
    """`contributions` of a tensor as it is, without its matrix ever being there as a whole."""
    if block.collided is not None:
        yield from contributions(p, block, power_matrix(p, block, tensor, factor))
        return
    found: list[list[Tensor]] = [[] for _ in block.terms]
    for rows in row_blocks(tensor):
        matrix = _powers(p, block, tensor, factor, rows)
        for sums, axes, (_, ids) in zip(found, block.term_axes, block.terms, strict=True):
            part = _total(p, matrix, axes)
            if sums and ids.shape[0] == 1:
                sums[0] = _total(p, torch.stack([sums[0], part]), (0,)).squeeze(0)
            else:
                sums.append(part)
    for sums in found:
        yield _logs(p, torch.cat(sums) if len(sums) > 1 else sums[0]).reshape(-1)


def energy(p: float, block: Block, matrix: Tensor, log_scales: Tensor | None = None) -> Tensor:
    """0-d: the log of the sum (p = inf: the largest) over the whole of a matrix, after a rescaling where given."""
    if log_scales is not None or matrix.dtype != float_dtype(matrix.device):
        shifts = _shifts(p, block, log_scales, matrix.device)
        if is_linear(p) and has_two_sides(block):
            return _energy(p, block, matrix, shifts)
        matrix = _shifted(p, expanded(p, matrix), shifts)
    return _logs(p, _total(p, expanded(p, matrix).reshape(-1), (0,))).reshape(())


def is_linear(p: float) -> bool:
    """Whether matrices hold powers rather than their logarithms."""
    return p <= _LINEAR_UP_TO


def _powers(p: float, block: Block, tensor: Tensor, factor: Tensor | None, rows: slice) -> Tensor:
    """|w * factor|^p of some rows, summed over the kernel axes."""
    part = tensor.detach() if tensor.ndim == 0 else tensor.detach()[rows]
    size = part.to(float_dtype(tensor.device), copy=True).abs_()
    if factor is not None:
        size *= rows_of(factor, rows)
    return _total(p, _raised(p, size), block.kernel_axes)


def _raised(p: float, size: Tensor) -> Tensor:
    """Absolute values as powers or logarithms, in place."""
    if is_linear(p):
        if p == 2:
            size *= size
        elif p != 1:
            size.pow_(p)
    else:
        size.log_()
        if not math.isinf(p):
            size *= p
    return size


def _total(p: float, matrix: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The sum over some axes, which stay with size 1: of powers, of exponentials (result in logs), or the largest."""
    if not axes:
        return matrix
    if is_linear(p):
        return matrix.sum(axes, keepdim=True)
    return matrix.amax(axes, keepdim=True) if math.isinf(p) else matrix.logsumexp(axes, keepdim=True)


def _logs(p: float, sums: Tensor) -> Tensor:
    """Sums as logarithms."""
    return sums.log() if is_linear(p) else sums


def _shifts(p: float, block: Block, log_scales: Tensor | None, device: torch.device) -> list[Tensor]:
    """By term, the logarithm by which a rescaling multiplies |w|^p; 0 without one."""
    if log_scales is None:
        return [torch.zeros(ids.shape, dtype=float_dtype(device), device=device) for _, ids in block.terms]
    padded = torch.nn.functional.pad(log_scales, (0, 1))
    return [(coefficient if math.isinf(p) else p * coefficient) * padded[ids] for coefficient, ids in block.terms]


def _shifted(p: float, matrix: Tensor, shifts: list[Tensor]) -> Tensor:
    """The matrix after a rescaling."""
    if not shifts:
        return matrix
    total = sum(shifts[1:], shifts[0])
    return matrix * total.exp() if is_linear(p) else matrix + total


def has_two_sides(block: Block) -> bool:
    """Whether the matrix is one of rows by columns, each with a variable of its own: most layers."""
    if len(block.terms) != 2 or block.collided is not None:
        return False
    columns, rows = block.term_axes
    return sorted((*columns, *rows, *block.kernel_axes)) == list(range(len(block.shape)))


def table_of(block: Block, matrix: Tensor) -> Tensor:
    """The matrix of `has_two_sides` as rows by columns."""
    columns, rows = block.term_axes
    shape = (block.terms[0][1].numel(), block.terms[1][1].numel())
    return matrix.permute(*rows, *columns, *block.kernel_axes).reshape(shape)


def table_products(p: float, table: Tensor, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """(table @ right, table.T @ left); a narrow table is widened a part at a time, which is read once for both."""
    if table.dtype == right.dtype:
        return table @ right, table.T @ left
    above: list[Tensor] = []
    below = right.new_zeros(table.shape[1])
    for rows in row_blocks(table):
        part = expanded(p, table[rows])
        above.append(part @ right)
        below += part.T @ left[rows]
    return torch.cat(above), below


def _two_sides(p: float, block: Block, matrix: Tensor, shifts: list[Tensor]) -> Iterator[Tensor]:
    """`contributions` of rows by columns: two products of the matrix with a vector, nothing of its size in between."""
    own, other = (shift.reshape(-1) for shift in shifts)
    # The largest exponents are taken out first, so that none overflows.
    most_own, most_other = own.amax(), other.amax()
    above, below = table_products(p, table_of(block, matrix), (other - most_other).exp(), (own - most_own).exp())
    yield own + (above.log() + most_other)
    yield other + (below.log() + most_own)


def _energy(p: float, block: Block, matrix: Tensor, shifts: list[Tensor]) -> Tensor:
    """0-d: the log of the sum over rows by columns after a rescaling."""
    own, other = (shift.reshape(-1) for shift in shifts)
    most = other.amax()
    table, right = table_of(block, matrix), (other - most).exp()
    parts = [expanded(p, table[rows]) @ right for rows in row_blocks(table)] if table.dtype != right.dtype else [table @ right]
    return (own + torch.cat(parts).log()).logsumexp(0) + most

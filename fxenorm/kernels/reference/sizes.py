"""Weights times factors, and their sizes after a rescaling for what asks which are larger: without a logarithm of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..parts import Index, part_of, parts_of
from ..program import Block

__all__ = ["MOST_SHIFT", "are_in_range", "log_maxima", "narrow_product", "sizes_of"]

MOST_SHIFT = 500.0
"""Natural logarithms by which factors may change a weight of up to 32 bits, 1e-45 to 3e38, within the range of float64."""


def are_in_range(matrix: Tensor, shifts: Sequence[Tensor]) -> bool:
    """Whether a matrix holds weights of up to 32 bits on the CPU, whose products with all factors surely are in range.

    Args:
        matrix: as `power_matrix` returns it for a large p.
        shifts: by term, the natural logarithms of the factors, as `shifts_of` returns them for p = inf.
    """
    if matrix.device.type != "cpu" or matrix.dtype == torch.float64:
        return False
    return sum(float(shift.abs().amax()) for shift in shifts if shift.numel()) <= MOST_SHIFT


def sizes_of(matrix: Tensor, shifts: Sequence[Tensor]) -> Iterator[tuple[Index, Tensor]]:
    """Yields the sizes of the weights after a rescaling in float64, a part at a time; see `are_in_range`."""
    factors = [shift.exp() for shift in shifts]
    for index in parts_of(matrix):
        part = matrix[index].abs().to(torch.float64)
        for factor in factors:
            part *= part_of(factor, index)
        yield index, part


def log_maxima(block: Block, matrix: Tensor, shifts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields by term the logarithms of the largest weight of each position after a rescaling; see `are_in_range`."""
    totals = [torch.zeros(ids.shape, dtype=torch.float64, device=matrix.device) for _, ids in block.terms]
    for index, sizes in sizes_of(matrix, shifts):
        for total, axes in zip(totals, block.term_axes, strict=True):
            own = part_of(total, index)
            torch.maximum(own, sizes.amax(axes, keepdim=True) if axes else sizes, out=own)
    yield from (total.log().reshape(-1) for total in totals)


def narrow_product(tensor: Tensor, factor: Tensor) -> Tensor:
    """Returns a tensor times a factor in float32, the product in the factor's type and rounded once; a part at a time."""
    found = torch.empty_like(tensor, dtype=torch.float32)
    for index in parts_of(tensor):
        found[index] = tensor[index].to(factor.dtype, copy=True).mul_(part_of(factor, index))
    return found

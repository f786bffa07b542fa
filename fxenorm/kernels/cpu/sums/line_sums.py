"""Sums of |w|^p along the lines of a large tensor that is a table of rows by columns as it lies in memory."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from ...memory import has_plain_memory
from ...program import Block
from ...reference.channel_sums import is_linear
from ..tables import TYPES
from .product_tables import ProductTables

__all__ = ["line_sums"]

_FEWEST, _SHORTEST = 1 << 16, 32
"""Entries of a tensor, and of its rows, for which a table is worth while; bounds by estimate."""


def line_sums(library: ctypes.CDLL, p: float, block: Block, tensor: Tensor) -> Tensor | None:
    """Returns |w|^p summed over the kernel axes, size 1 there, in float64; None where the kernels cannot or need not.

    Args:
        library: the compiled kernels.
        p: the norm's exponent.
        block: the tensor's terms.
        tensor: the weight.
    """
    summed = [axis for axis in block.kernel_axes if tensor.shape[axis] > 1]
    if not summed or block.offset or not is_linear(p) or tensor.dtype not in TYPES or tensor.numel() < _FEWEST:
        return None
    if tensor.device.type != "cpu" or not has_plain_memory(tensor) or not tensor.is_contiguous():
        return None
    kept = [axis for axis in range(tensor.ndim) if tensor.shape[axis] > 1 and axis not in summed]
    first, last = (kept, summed) if not kept or kept[0] < summed[0] else (summed, kept)
    if first and last and first[-1] > last[0]:  # axes of both kinds take turns
        return None
    width = math.prod(tensor.shape[axis] for axis in last)
    table = tensor.detach().reshape(-1, width)
    # What is in float64 would be taken for powers.
    if width < _SHORTEST or table.dtype == torch.float64:
        return None
    tables = ProductTables([table])
    sums = tables.times(library, p, torch.ones(tables.size, dtype=torch.float64, device="cpu"))
    lines = sums[: table.shape[0]] if last is summed else sums[table.shape[0] :]
    return lines.reshape([1 if axis in summed else size for axis, size in enumerate(tensor.shape)])

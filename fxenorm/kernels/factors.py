"""From log-scales to factors, the same way in every executor that works in PyTorch: base-2 logarithms and exact powers of two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .program import as_float

__all__ = ["MOST_GROWTH", "beyond_factors", "exact_exp2", "log2_factors", "most_growth"]

MOST_GROWTH = 690.0
"""Largest natural logarithm of a factor: the exponents of a float64 end at 1022 log 2 = 708."""

_MOST_NARROW = 87.0
"""The same where factors are float32, whose exponents end at 126 log 2 = 87.3."""


def most_growth(dtype: torch.dtype) -> float:
    """Returns the natural logarithm that all of an entry's factors > 1 together, or all < 1, must stay below.

    What is beyond it may become infinite or 0, and 0 times infinity is no number.

    Args:
        dtype: of the factors, not of what they multiply.
    """
    return MOST_GROWTH if dtype == torch.float64 else _MOST_NARROW


def beyond_factors(changes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns bool, by entry: whether the factors > 1 together become too large, and whether those < 1 become too small.

    Whatever the entry is, 0 too; and even where the others make up for it, since they may be multiplied later.

    Args:
        changes: by term the base-2 logarithms of its factors, broadcastable to the entries.
    """
    most = most_growth(changes[0].dtype) / math.log(2.0)
    ups, downs = [change.clamp(min=0.0) for change in changes], [change.clamp(max=0.0) for change in changes]
    return sum(ups[1:], ups[0]) >= most, sum(downs[1:], downs[0]) <= -most


def log2_factors(log_scales: Tensor) -> Tensor:
    """Returns (K + 1,) base-2 log-scales, 0 for "fixed" at the end; those within a rounding of an integer become it."""
    log2_scales = as_float(log_scales, log_scales.device) * math.log2(math.e)
    whole = log2_scales.round()
    slack = 4 * torch.finfo(log2_scales.dtype).eps
    snapped = torch.where((log2_scales - whole).abs() <= slack * whole.abs().clamp(min=1.0), whole, log2_scales)
    return torch.nn.functional.pad(snapped, (0, 1))


def exact_exp2(exponent: Tensor) -> Tensor:
    """Returns 2 ** exponent, exact for integers, whatever the device's exp2 does."""
    if exponent.dtype == torch.float64:
        bias, width, kind = 1023, 52, torch.int64
    else:
        bias, width, kind = 127, 23, torch.int32
    whole = exponent.round().clamp(1 - bias, bias)
    power = ((whole.to(kind) + bias) << width).view(exponent.dtype)
    return torch.exp2(exponent - whole) * power

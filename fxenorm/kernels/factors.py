"""From log-scales to factors, the same way in every executor that works in PyTorch: base-2 logarithms and exact powers of two."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .program import as_float

__all__ = ["MOST_GROWTH", "exact_exp2", "log2_factors"]

MOST_GROWTH = 690.0
"""Largest natural logarithm of a factor: the exponents of a float64 end at 1022 log 2 = 708."""


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

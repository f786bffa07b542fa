"""Rounds tensors to as many numbers as some bits can tell apart, and leaves them as floating-point tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bits import Bits

__all__ = ["ActivationRange", "rounded", "rounded_weight"]


def rounded(tensor: Tensor, largest: Tensor, levels: int, lowest: int) -> Tensor:
    """Returns the nearest multiples of largest / levels, no more than `levels` and no less than `lowest` of them.

    Args:
        tensor: of a floating-point type, which the result has too; it is worked out in float32 at least.
        largest: the end of the range, of a shape that broadcasts; where it is 0, so is the result.
        levels, lowest: the largest and the smallest whole number.
    """
    wide = torch.promote_types(tensor.dtype, torch.float32)
    step = largest.to(wide) / levels
    numbers = (tensor.to(wide) / torch.where(step > 0, step, 1.0)).round().clamp(lowest, levels)
    return (numbers * step).to(tensor.dtype)


def rounded_weight(weight: Tensor, bits: Bits, output: int, input: int, groups: int = 1) -> Tensor:
    """Returns a weight, rounded symmetrically, each range as large as the largest of its entries.

    Args:
        weight: a stack of matrices or of kernels of a convolution, (stack, ...).
        bits: those of its layer; None for the weight leaves it as it is.
        output, input, groups: see `Bits.weight_ranges`.
    """
    levels = bits.weight_levels
    if levels is None or not weight.numel():
        return weight
    of_one, count = bits.weight_ranges(weight.shape[1:], output, input, groups)
    many = torch.arange(weight.shape[0], dtype=torch.int64, device=weight.device).reshape([-1] + [1] * of_one.ndim)
    sizes, ids = weight.detach().abs(), of_one.to(weight.device) + count * many
    ranges = sizes.new_zeros(count * weight.shape[0])
    ranges.scatter_reduce_(0, ids.expand(weight.shape).reshape(-1), sizes.reshape(-1), "amax")
    return rounded(weight, ranges[ids], levels, -levels)


@dataclass
class ActivationRange:
    """The smallest and the largest value of an activation, 0 among them: 0-d tensors on its device."""

    minimum: Tensor
    maximum: Tensor

    @classmethod
    def of(cls, activation: Tensor) -> ActivationRange:
        """Returns the range of an activation that has entries."""
        low, high = activation.detach().aminmax()
        return cls(low.clamp(max=0.0), high.clamp(min=0.0))

    def add(self, other: ActivationRange) -> None:
        """Takes in what another run has seen."""
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)

    def rounded(self, activation: Tensor, bits: Bits) -> Tensor:
        """Returns an activation, rounded by this range: from 0 where the range has nothing below, else symmetrically."""
        one_sided = not bool(self.minimum < 0)
        levels = bits.activation_levels(one_sided)
        if levels is None:
            return activation
        unsigned = one_sided and not bits.symmetric
        return rounded(activation, torch.maximum(self.maximum, -self.minimum), levels, 0 if unsigned else -levels)

"""log J, the logarithm of the predicted output noise, as a convex function of the log-scales with its derivatives.

J(s) = sum over ranges q of R_q(s)^2 S_q(s) / (12 levels^2), R_q the r-norm of the entries |v_e| exp(a_e . s), a smooth stand-in
for their largest, and S_q = sum of f_e exp(-2 a_e . s), f_e the mean squared derivative of the outputs by v_e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .quantisers import Quantised

__all__ = ["LogNoise"]

_LEAST_SLOPE = 1e-6
"""Squared derivatives count at least this share of their tensor's mean: data that were not seen may use those entries."""


@dataclass(frozen=True)
class _State:
    """One tensor at some log-scales.

    Attributes:
        of_range, of_slope: by entry, its share in its range's r-norm to the power r, and in S.
        logs: (count,) log of the noise of each range.
    """

    of_range: Tensor
    of_slope: Tensor
    logs: Tensor


class LogNoise:
    """log J at any log-scales.

    Args:
        quantisers: all that is rounded.
        num_scales: number of variables.
        power: r, of the norm in the place of the largest entry.
    """

    def __init__(self, quantisers: Sequence[Quantised], num_scales: int, power: float) -> None:
        alive = [one for one in quantisers if bool(((one.slopes > 0) & (one.sizes > 0)).any())]
        self._tensors, self._count, self._power = alive, num_scales, power
        self._logs = [(one.sizes.log(), _floored(one).log()) for one in alive]
        self._known: tuple[Tensor, list[_State], list[Tensor]] | None = None

    def _at(self, log_scales: Tensor) -> tuple[list[_State], list[Tensor], Tensor]:
        """Returns each tensor's state, each range's share in J, and log J; kept for the last log-scales."""
        if self._known is None or not torch.equal(self._known[0], log_scales):
            states = [self._state(*pair, self._padded(log_scales)) for pair in zip(self._tensors, self._logs, strict=True)]
            self._known = log_scales.clone(), states, []
        states = self._known[1]
        total = torch.cat([one.logs for one in states]).logsumexp(0)
        return states, [(one.logs - total).exp() for one in states], total

    def _state(self, tensor: Quantised, logs: tuple[Tensor, Tensor], padded: Tensor) -> _State:
        """Returns one tensor at some log-scales."""
        moved = tensor.moved(padded)
        of_range, log_range = _shares(tensor, self._power * (logs[0] + moved))
        of_slope, log_slope = _shares(tensor, logs[1] - 2 * moved)
        return _State(of_range, of_slope, 2 / self._power * log_range + log_slope - math.log(12 * tensor.levels**2))

    def _padded(self, vector: Tensor) -> Tensor:
        """Returns (num_scales + 1,) a vector with a 0 at its end."""
        return torch.cat([vector, vector.new_zeros(1)])

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log J and its (num_scales,) derivative at some (num_scales,) log-scales, float64 on the CPU."""
        states, shares, total = self._at(log_scales)
        gradient = log_scales.new_zeros(self._count + 1)
        for tensor, state, share in zip(self._tensors, states, shares, strict=True):
            tensor.collect(2 * share[tensor.ranges] * (state.of_range - state.of_slope), gradient)
        return total, gradient[:-1]

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (num_scales,) the second derivative of log J times a direction."""
        states, shares, _ = self._at(log_scales)
        padded, image = self._padded(direction), direction.new_zeros(self._count + 1)
        along = [tensor.moved(padded) for tensor in self._tensors]
        parts = zip(self._tensors, states, along, strict=True)
        means = [(one.totals(state.of_range * y), one.totals(state.of_slope * y)) for one, state, y in parts]
        slopes = [2 * (high - low) for high, low in means]
        mean = torch.stack([(share * slope).sum() for share, slope in zip(shares, slopes, strict=True)]).sum()
        for number, (tensor, state) in enumerate(zip(self._tensors, states, strict=True)):
            ids, y, (high, low) = tensor.ranges, along[number], means[number]
            bent = 2 * self._power * state.of_range * (y - high[ids]) + 4 * state.of_slope * (y - low[ids])
            lean = 2 * (slopes[number] - mean)[ids] * (state.of_range - state.of_slope)
            tensor.collect(shares[number][ids] * (bent + lean), image)
        return image[:-1]

    def recession(self, direction: Tensor) -> float:
        """Returns the slope of log J far along a direction, where derivatives of exactly 0 count as none."""
        padded, steepest = self._padded(direction), 0.0
        for tensor in self._tensors:
            moved = tensor.moved(padded)
            highest = tensor.largest(torch.where(tensor.sizes > 0, moved, -torch.inf))
            lowest = tensor.largest(torch.where(tensor.slopes > 0, -moved, -torch.inf))
            rise = highest + lowest
            steepest = max(steepest, float(torch.where(rise.isfinite(), 2 * rise, 0.0).amax()))
        return steepest


def _floored(tensor: Quantised) -> Tensor:
    """Returns squared derivatives that are no less than a share of their mean, where there is something to round.

    No less either than that share of the mean of v^2 f, over v^2, where that is smaller: this follows a rescaling as f does.
    """
    there, squares = tensor.sizes > 0, tensor.sizes.square()
    number = there.sum().clamp(min=1)
    mean, mean_product = tensor.slopes.sum() / number, (tensor.slopes * squares).sum() / number
    least = _LEAST_SLOPE * torch.minimum(mean, mean_product / torch.where(there, squares, 1.0))
    return torch.where(there, torch.maximum(tensor.slopes, least), 0.0)


def _shares(tensor: Quantised, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns by entry its share in the sum of exponentials over its range, and (count,) the logs of these sums."""
    largest = tensor.largest(logs)
    shift = torch.where(largest.isfinite(), largest, 0.0)
    sizes = (logs - shift[tensor.ranges]).exp()
    totals = tensor.totals(sizes)
    return sizes / torch.where(totals > 0, totals, 1.0)[tensor.ranges], totals.log() + shift

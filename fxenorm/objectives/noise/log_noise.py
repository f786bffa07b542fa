"""log J, the logarithm of the predicted output noise, as a convex function of the log-scales with its derivatives.

J(s) = sum over ranges q of R_q(s)^2 S_q(s) / (12 levels^2), R_q the r-norm of the entries |v_e| exp(a_e . s), a smooth stand-in
for their largest, and S_q = sum of f_e exp(-2 a_e . s), f_e the mean squared derivative of the outputs by v_e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..quantisers import Quantised
from .range_pairs import RangePairs

__all__ = ["LogNoise"]

_LEAST_SLOPE = 1e-6
"""Squared derivatives count at least this share of their tensor's mean: data that were not seen may use those entries."""


@dataclass(frozen=True, eq=False)
class _Tensor:
    """One tensor that is rounded; entries that all ranges and variables treat alike are put together.

    Attributes:
        small: the tensor with the largest of such entries in their place.
        log_ranges: log of the sum of |v|^r over such entries.
        log_slopes: log of the sum of f over them.
    """

    small: Quantised
    log_ranges: Tensor
    log_slopes: Tensor

    @classmethod
    def of(cls, one: Quantised, power: float) -> _Tensor:
        """Puts entries together, as the places of a kernel."""
        ids = [one.ranges, *(ids for _, ids in one.terms)]
        shapes = [(1,) * (one.sizes.ndim - own.ndim) + tuple(own.shape) for own in ids]
        still = [axis for axis in range(one.sizes.ndim) if all(shape[axis] == 1 for shape in shapes)]
        if not still:
            return cls(one, power * one.sizes.log(), _floored(one).log())
        small = replace(one, sizes=one.sizes.amax(still, keepdim=True), slopes=one.slopes.amax(still, keepdim=True))
        logs = (power * one.sizes.log()).logsumexp(still, keepdim=True)
        return cls(small, logs, _floored(one).log().logsumexp(still, keepdim=True))

    def at(self, padded: Tensor, power: float) -> _State:
        """Returns the tensor at some log-scales."""
        moved = self.small.moved(padded)
        of_range, log_range = _shares(self.small, self.log_ranges + power * moved)
        of_slope, log_slope = _shares(self.small, self.log_slopes - 2 * moved)
        return _State(of_range, of_slope, 2 / power * log_range + log_slope - math.log(12 * self.small.levels**2))


@dataclass(frozen=True, eq=False)
class _State:
    """One tensor at some log-scales.

    Attributes:
        of_range, of_slope: by entry, its share in its range's r-norm to the power r, and in S.
        logs: (count,) log of the noise of each range.
    """

    of_range: Tensor
    of_slope: Tensor
    logs: Tensor


@dataclass(frozen=True, eq=False)
class _Point:
    """All tensors at some log-scales.

    Attributes:
        log_scales: where.
        states: of the tensors.
        shares: by tensor (count,) the share of each range in J.
        value: log J.
        gradient: (num_scales,) its derivative.
        bent: by tensor and entry, the weight with which the squared change of the entry counts in the second derivative.
    """

    log_scales: Tensor
    states: list[_State]
    shares: list[Tensor]
    value: Tensor
    gradient: Tensor
    bent: list[Tensor]


class LogNoise:
    """log J at any log-scales.

    Args:
        quantisers: all that is rounded.
        num_scales: number of variables.
        power: r, of the norm in the place of the largest entry.
    """

    def __init__(self, quantisers: Sequence[Quantised], num_scales: int, power: float) -> None:
        alive = [one for one in quantisers if bool(((one.slopes > 0) & (one.sizes > 0)).any())]
        self._all, self._count, self._power = [_Tensor.of(one, power) for one in alive], num_scales, power
        self._tensors = [one.small for one in self._all]
        self._known: _Point | None = None

    @cached_property
    def _pairs(self) -> list[RangePairs]:
        """By tensor, the pairs of its ranges and variables."""
        return [RangePairs(tensor, self._count) for tensor in self._tensors]

    def _at(self, log_scales: Tensor) -> _Point:
        """Returns all tensors at some log-scales; kept for the last of these."""
        if self._known is None or not torch.equal(self._known.log_scales, log_scales):
            padded, power = self._padded(log_scales), self._power
            states = [one.at(padded, power) for one in self._all]
            total = torch.cat([one.logs for one in states]).logsumexp(0)
            shares = [(one.logs - total).exp() for one in states]
            gradient, bent = log_scales.new_zeros(self._count + 1), []
            for tensor, state, share in zip(self._tensors, states, shares, strict=True):
                by_entry = share[tensor.ranges]
                tensor.collect(2 * by_entry * (state.of_range - state.of_slope), gradient)
                bent.append(by_entry * (2 * power * state.of_range + 4 * state.of_slope))
            self._known = _Point(log_scales.clone(), states, shares, total, gradient[:-1], bent)
        return self._known

    def _padded(self, vector: Tensor) -> Tensor:
        """Returns (num_scales + 1,) a vector with a 0 at its end."""
        return torch.cat([vector, vector.new_zeros(1)])

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log J and its (num_scales,) derivative at some (num_scales,) log-scales, float64 on the CPU."""
        at = self._at(log_scales)
        return at.value, at.gradient

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (num_scales,) the second derivative of log J times a direction."""
        at, padded = self._at(log_scales), self._padded(direction)
        mean, image = (at.gradient * direction).sum(), direction.new_zeros(self._count + 1)
        for tensor, state, share, bent in zip(self._tensors, at.states, at.shares, at.bent, strict=True):
            along = tensor.moved(padded)
            high, low = tensor.totals(state.of_range * along), tensor.totals(state.of_slope * along)
            lean = 2 * (2 * (high - low) - mean)
            of_range, of_slope = share * (lean - 2 * self._power * high), share * (lean + 4 * low)
            change = bent * along + of_range[tensor.ranges] * state.of_range - of_slope[tensor.ranges] * state.of_slope
            tensor.collect(change, image)
        return image[:-1]

    def curvature_diagonal(self, log_scales: Tensor) -> Tensor:
        """Returns (num_scales,) the second derivative of log J by each variable alone."""
        at = self._at(log_scales)
        found = log_scales.new_zeros(self._count + 1)
        parts = zip(self._tensors, self._pairs, at.states, at.shares, at.bent, strict=True)
        for tensor, pairs, state, share, bent in parts:
            replace(tensor, terms=tuple((coefficient**2, ids) for coefficient, ids in tensor.terms)).collect(bent, found)
            for coefficient, same, ids in pairs.together():
                replace(tensor, terms=((1, ids),)).collect(coefficient * bent * same, found)
            high, low = pairs.sums(state.of_range), pairs.sums(state.of_slope)
            spread = (2 * (high - low)).square() - 2 * self._power * high.square() - 4 * low.square()
            found.index_add_(0, pairs.variables, share[pairs.ranges] * spread)
        return (found[:-1] - at.gradient.square()).clamp(min=0.0)

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

    def recessions(self) -> Tensor:
        """Returns (2, num_scales) the slopes far along each variable alone, up and down, as `recession` does one by one.

        NaN where two terms of an entry meet in the variable, which has to be asked for.
        """
        found = torch.zeros((2, self._count + 1), dtype=torch.float64, device="cpu")
        for tensor, pairs in zip(self._tensors, self._pairs, strict=True):
            least, largest = pairs.bounds(tensor.sizes > 0)
            lowest, highest = pairs.bounds(tensor.slopes > 0)
            for own, rise in zip(found, (largest - lowest, highest - least), strict=True):
                own.scatter_reduce_(0, pairs.variables, torch.where(rise.isfinite(), 2 * rise, 0.0), "amax")
        for pairs in self._pairs:
            for _, _, ids in pairs.together():
                found[:, ids.reshape(-1)] = torch.nan
        return found[:, :-1]


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

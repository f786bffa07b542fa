"""The quantisers that some bits put into a model: ranges, derivatives and exponents of all that is rounded, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..bits import Bits
from ..errors import OptionError
from ..observe.observation import Observation, named
from ..observe.observations import Observations
from ..observe.observed_weight import ObservedWeight

__all__ = ["Quantised", "inputs_of_layers", "over_equal_axes", "quantisers_of"]


@dataclass(frozen=True, eq=False)
class Quantised:
    """One tensor that is rounded: the weight of a layer, or an activation that a layer reads; float64 on the CPU.

    Attributes:
        layer: path of the layer.
        kind: "weight" or "input".
        call: of an input, which call of the layer in one forward pass.
        bits: how many.
        levels: the largest whole number that an entry is rounded to.
        ranges: the number of each entry's range, of size 1 along axes on which it is the same.
        count: number of ranges.
        sizes: the largest absolute value of each entry.
        slopes: the mean squared derivative by each entry; 0 where it is 0, which is never rounded.
        terms: the exponents: (coefficient, ids of all axes, num_scales = fixed).
    """

    layer: str
    kind: Literal["weight", "input"]
    call: int
    bits: int
    levels: int
    ranges: Tensor
    count: int
    sizes: Tensor
    slopes: Tensor
    terms: tuple[tuple[int, Tensor], ...]

    @property
    def name(self) -> str:
        """The place in words, as "fc1 weight"."""
        return f"{self.layer} weight" if self.kind == "weight" else named(self.layer, "input", self.call)

    def totals(self, values: Tensor) -> Tensor:
        """Returns (count,) the sum of some values of the tensor's shape over each range."""
        part = over_equal_axes(values, self.ranges, torch.sum)
        return part.new_zeros(self.count).index_add_(0, self.ranges.reshape(-1), part.reshape(-1))

    def largest(self, values: Tensor) -> Tensor:
        """Returns (count,) the largest of some values of the tensor's shape in each range."""
        part = over_equal_axes(values, self.ranges, torch.amax)
        empty = torch.full((self.count,), -torch.inf, dtype=part.dtype, device=part.device)
        return empty.scatter_reduce_(0, self.ranges.reshape(-1), part.reshape(-1), "amax")

    def moved(self, padded: Tensor) -> Tensor:
        """Returns by entry the exponents times (num_scales + 1,) log-scales, of which the last is 0."""
        logs = torch.zeros_like(self.sizes)
        for coefficient, ids in self.terms:
            logs = logs + coefficient * padded[ids]
        return logs

    def collect(self, values: Tensor, total: Tensor) -> None:
        """Adds to (num_scales + 1,) a total the sum of some values of the tensor's shape, times their exponents."""
        for coefficient, ids in self.terms:
            part = over_equal_axes(values, ids, torch.sum)
            total.index_add_(0, ids.reshape(-1), coefficient * part.reshape(-1))

    def noise(self) -> Tensor:
        """Returns (count,) the mean squared error of the outputs that each range makes, by the exact largest entries."""
        steps = self.largest(self.sizes) / self.levels
        return steps.square() * self.totals(self.slopes) / 12


def over_equal_axes(values: Tensor, ids: Tensor, reduce: Any) -> Tensor:
    """Returns values, reduced along the axes on which ids are the same."""
    axes = [axis for axis in range(ids.ndim) if ids.shape[axis] == 1 and values.shape[axis] != 1]
    return reduce(values, axes, keepdim=True) if axes else values


def quantisers_of(observations: Observations, bits: Bits) -> list[Quantised]:
    """Returns all tensors that are rounded: weights, then inputs; a weight that layers share is rounded once.

    Args:
        observations: with derivatives.
        bits: of the quantiser.

    Raises:
        OptionError: there are no derivatives, a pattern of `bits` fits no layer, or nothing that is rounded reaches the outputs.
    """
    if observations.output_square is None:
        raise OptionError("the observations have no derivatives: call plan.observe(loader, derivatives=True)")
    bits.check(observations.layers)
    found, names = [], set()
    for weight in observations.weights:
        one = bits.of(weight.layer)
        if one is not None and one.weight_levels is not None and weight.name not in names:
            names.add(weight.name)
            found.append(_of_weight(weight, one, observations.num_scales))
    for seen in inputs_of_layers(observations):
        layer, call = _reader(seen, observations)
        one = bits.of(layer)
        if one is not None and one.activations is not None and seen.squared_derivative is not None:
            found.append(replace(_of_input(seen, one, observations.num_scales), layer=layer, call=call))
    if not any(bool(((one.slopes > 0) & (one.sizes > 0)).any()) for one in found):
        raise OptionError(f"{bits!r} rounds nothing that reaches the outputs of this model: there is no noise to predict")
    return found


def inputs_of_layers(observations: Observations) -> list[Observation]:
    """Returns the activations that linear layers and convolutions read, and those that functions multiply by parameters."""
    layers = set(observations.layers)
    inputs = ((one, one.direction == "input" and one.module in layers) for one in observations)
    return [one for one, read in inputs if read or one.direction == "operand"]


def _reader(seen: Observation, observations: Observations) -> tuple[str, int]:
    """Returns the layer that reads an activation and the number of the call: those of functions come after the module's own."""
    if seen.direction != "operand":
        return seen.module, seen.call
    layer = next((weight.layer for weight in observations.weights if weight.name == seen.module), seen.module)
    own = [one.call + 1 for one in observations if one.direction == "input" and one.module == layer != seen.module]
    return layer, seen.call + (max(own, default=0) if layer in observations.layers else 0)


def _of_weight(weight: ObservedWeight, bits: Bits, num_scales: int) -> Quantised:
    """Returns a weight that is rounded."""
    ranges, count = _ranges_of(weight, bits)
    sizes = weight.values.abs()
    slopes = torch.where(sizes > 0, weight.squared_derivative, 0.0)
    number, levels = bits.weights or 0, bits.weight_levels or 1
    terms = _terms(weight.terms, num_scales)
    return Quantised(weight.layer, "weight", 0, number, levels, ranges, count, sizes, slopes, terms)


def _ranges_of(weight: ObservedWeight, bits: Bits) -> tuple[Tensor, int]:
    """Returns which entries of a weight share a range, and how many ranges there are; each matrix of a stack has its own."""
    output, inputs, groups = weight.layout
    shape = tuple(weight.values.shape)
    if output >= 0:
        return bits.weight_ranges(shape, output, inputs, groups)
    ids, count = bits.weight_ranges(shape[-2:], output % 2, inputs % 2, groups)
    stack = math.prod(shape[:-2])
    numbers = torch.arange(stack, dtype=torch.int64, device="cpu").reshape(*shape[:-2], 1, 1)
    return ids + count * numbers, count * stack


def _of_input(seen: Observation, bits: Bits, num_scales: int) -> Quantised:
    """Returns an activation that is rounded, with one range, which is that of all its channels."""
    sizes = torch.maximum(seen.maximum, -seen.minimum).clamp(min=0.0)
    given = seen.squared_derivative
    slopes = torch.where(sizes > 0, torch.zeros_like(sizes) if given is None else given, 0.0)
    levels = bits.activation_levels(one_sided=not bool((seen.minimum < 0).any())) or 1
    ranges = torch.zeros((1,), dtype=torch.int64, device="cpu")
    terms = _terms(seen.terms, num_scales)
    return Quantised(seen.module, "input", seen.call, bits.activations or 0, levels, ranges, 1, sizes, slopes, terms)


def _terms(terms: Sequence[tuple[int, Any]], num_scales: int) -> tuple[tuple[int, Tensor], ...]:
    """Returns exponents with the number of variables in the place of -1."""
    places = [(coefficient, np.where(ids < 0, num_scales, ids)) for coefficient, ids in terms]
    return tuple((int(coefficient), torch.from_numpy(np.ascontiguousarray(ids))) for coefficient, ids in places)

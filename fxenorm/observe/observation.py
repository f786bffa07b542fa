"""`Observation`: the values that one activation took on data, by channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..analysis.serialise import known_ids
from .packed import packed, unpacked, unpacked_tensor
from .places import Terms

__all__ = ["Observation", "log_factors", "named", "read_terms"]

_POWERS = {"minimum": 1, "maximum": 1, "mean_square": 2, "quantile": 1, "squared_derivative": -2}
"""By value, the power of the activation's factor by which it follows a rescaling."""


@dataclass(frozen=True)
class Observation:
    """The values that one activation took, by channel: (channels,) tensors in float64 on the CPU.

    Attributes:
        module: path of the module; of an operand, name of the parameter.
        direction: "input" or "output": whether the activation enters or leaves the module; "operand": it is multiplied by the
            parameter in a function, as ``F.linear(x, layer.weight)``, and no linear layer or convolution is called for that.
        call: which call of the module in one forward pass, from 0; of an operand, which such product of the parameter.
        tensor: which of the activations there that move in different ways, as in `Site`.
        axis: the axis of the channels.
        entries: number of entries that each channel was seen with.
        minimum, maximum: the smallest and the largest value.
        mean_square: the mean of the squares.
        quantile: a high quantile of the absolute value: the largest of those of single batches.
        terms: the exponents: (coefficient, variable of each channel, -1 = fixed); empty where no rescaling moves it.
        squared_derivative: the mean over all entries of the outputs of the squared derivative by the channel's entries, which
            are summed: so large is the mean squared error of the outputs where each entry gets an error of its own with mean
            square 1. Of an input, as this module reads it; of an output, by way of all that reads it. None: not asked for, or
            none reaches it.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fxenorm.analyze(model).observe([torch.ones(2, 4)])["2", "input"]
        <Observation 2 input: 8 channels, moves>
    """

    module: str
    direction: str
    call: int
    tensor: int
    axis: int
    entries: int
    minimum: Tensor
    maximum: Tensor
    mean_square: Tensor
    quantile: Tensor
    terms: Terms = ()
    squared_derivative: Tensor | None = None

    def rescaled(self, log_scales: Tensor) -> Observation:
        """Returns the values after a rescaling: each channel times exp(coefficient * log-scale), squares by its square.

        Args:
            log_scales: (num_scales,) natural logarithms.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> seen = fxenorm.analyze(model).observe([torch.ones(2, 4)])["0", "output"]
            >>> bool((seen.rescaled(torch.ones(8)).minimum == seen.minimum * torch.ones(8).double().exp()).all())
            True
        """
        factor = log_factors(self.terms, tuple(self.minimum.shape), log_scales).exp()
        moved: dict[str, Any] = {
            name: value if value is None else value * factor.pow(power)
            for name, power in _POWERS.items()
            for value in (getattr(self, name),)
        }
        return dataclasses.replace(self, **moved)

    def to_dict(self) -> dict[str, Any]:
        """Returns the observation as a JSON-compatible dict; see `from_dict`.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> list(fxenorm.analyze(model).observe([torch.ones(2, 4)])["2", "input"].to_dict())
            ['place', 'values', 'terms']
        """
        values = [getattr(self, name) for name in _POWERS]
        return {
            "place": [self.module, self.direction, self.call, self.tensor, self.axis, self.entries],
            "values": [None if value is None else packed(value, "<f8") for value in values],
            "terms": [[int(coefficient), packed(variables, "<i8")] for coefficient, variables in self.terms],
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], num_scales: int) -> Observation:
        """Returns a stored observation.

        Args:
            row: the dict of `to_dict`.
            num_scales: number of variables of the plan.

        Raises:
            ValueError: its parts do not fit together.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> seen = fxenorm.analyze(model).observe([torch.ones(2, 4)])["2", "input"]
            >>> fxenorm.Observation.from_dict(seen.to_dict(), 8)
            <Observation 2 input: 8 channels, moves>
        """
        module, direction, call, tensor, axis, entries = row["place"]
        stored = zip(_POWERS, row["values"], strict=True)
        values: dict[str, Any] = {name: None if text is None else unpacked_tensor(text) for name, text in stored}
        place = (str(module), str(direction), int(call), int(tensor), int(axis), int(entries))
        found = cls(*place, terms=read_terms(row["terms"], num_scales, named(*place[:3])), **values)
        sizes = {value.numel() for value in values.values() if value is not None} | {ids.size for _, ids in found.terms}
        if len(sizes) != 1:
            raise ValueError(f"{module} {direction} has values of {sorted(sizes)} channels")
        return found

    def __repr__(self) -> str:
        """Returns one line: the place, the number of channels, and whether rescalings move them."""
        moves = "moves" if self.terms else "stays"
        return f"<Observation {named(self.module, self.direction, self.call)}: {self.minimum.numel():,} channels, {moves}>"


def log_factors(terms: Sequence[tuple[int, Any]], shape: tuple[int, ...], log_scales: Tensor) -> Tensor:
    """Returns the logarithms of the factors by which a tensor's entries follow some log-scales, float64 on the CPU."""
    padded = torch.cat([log_scales.detach().to("cpu", torch.float64), torch.zeros(1, dtype=torch.float64, device="cpu")])
    logs = torch.zeros(shape, dtype=torch.float64, device="cpu")
    for coefficient, variables in terms:
        logs += coefficient * padded[torch.from_numpy(np.ascontiguousarray(variables).copy())]
    return logs


def named(module: str, direction: str, call: int) -> str:
    """Returns the name of a place in words, as "layer1.0.relu input of call 1"."""
    return f"{module or 'the model'} {direction}" + (f" of call {call}" if call else "")


def read_terms(rows: Sequence[Sequence[Any]], num_scales: int, name: str) -> Terms:
    """Returns stored exponents of one axis; raises a ValueError where they do not fit the plan."""
    return tuple((int(coefficient), known_ids(unpacked(text, "<i8"), num_scales, name)) for coefficient, text in rows)

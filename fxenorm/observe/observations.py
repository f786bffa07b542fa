"""`Observations`: the ranges of activations by channel, as data that follows every rescaling by known factors."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BindError, OptionError
from ..weights.targets import checked_log_scales
from .places import Terms

__all__ = ["Observation", "Observations"]

_FORMAT = 1
_VALUES = ("minimum", "maximum", "mean_square", "quantile")


@dataclass(frozen=True)
class Observation:
    """The values that one activation took, by channel: (channels,) tensors in float64 on the CPU.

    Attributes:
        module: path of the module.
        direction: "input" or "output": whether the activation enters or leaves the module.
        call: which call of the module in one forward pass, from 0.
        tensor: which of the activations there that move in different ways, as in `Site`.
        axis: the axis of the channels.
        entries: number of entries that each channel was seen with.
        minimum, maximum: the smallest and the largest value.
        mean_square: the mean of the squares.
        quantile: a high quantile of the absolute value: the largest of those of single batches.
        terms: the exponents: (coefficient, variable of each channel, -1 = fixed); empty where no rescaling moves it.

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
        padded = torch.cat([log_scales.detach().to("cpu", torch.float64), torch.zeros(1, dtype=torch.float64, device="cpu")])
        logs = torch.zeros_like(self.minimum)
        for coefficient, variables in self.terms:
            logs += coefficient * padded[torch.from_numpy(variables.copy())]
        factor = logs.exp()
        return dataclasses.replace(
            self,
            minimum=self.minimum * factor,
            maximum=self.maximum * factor,
            mean_square=self.mean_square * factor.square(),
            quantile=self.quantile * factor,
        )

    def __repr__(self) -> str:
        """Returns one line: the place, the number of channels, and whether rescalings move them."""
        call = f" of call {self.call}" if self.call else ""
        moves = "moves" if self.terms else "stays"
        return f"<Observation {self.module} {self.direction}{call}: {self.minimum.numel():,} channels, {moves}>"


@dataclass(frozen=True)
class Observations:
    """The activations that `Plan.observe` saw, each by channel; iterate over it, or take one by its place.

    The values are those of the weights at the time. `rescaled` gives those after a rescaling, without running the model again.

    Attributes:
        activations: one observation an activation, in the order in which they were met.
        num_scales: number of variables of the plan.
        batches: number of batches that the model ran on.
        level: the share of entries of a batch, from 0 to 1, that the quantile bounds.
        skipped: by place, why an activation that carries variables, or that a layer reads, was not observed.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> observations = plan.observe([torch.randn(2, 4) for _ in range(3)])
        >>> observations
        <fxenorm.Observations: 5 activations, 3 batches>
        >>> result = plan.balance()
        >>> observations = observations.rescaled(result.log_scales)
    """

    activations: tuple[Observation, ...]
    num_scales: int
    batches: int
    level: float
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Returns the number of activations."""
        return len(self.activations)

    def __iter__(self) -> Iterator[Observation]:
        """Yields the activations in the order in which they were met."""
        return iter(self.activations)

    def __getitem__(self, place: Any) -> Observation:
        """Returns the activation at (module, "input" or "output"), with the call as a third where it is no first one.

        Raises:
            OptionError: none or several were observed there.
        """
        if not isinstance(place, tuple) or len(place) not in (2, 3):
            raise OptionError(
                f"{place!r} names no activation: expected (module, 'input' or 'output'), and the call if not the first"
            )
        wanted = (*place, 0)[:3]
        found = [one for one in self.activations if (one.module, one.direction, one.call) == wanted]
        if len(found) != 1:
            why = self.skipped.get(named(*wanted), "no site and no input of a layer is there")
            raise OptionError(f"{named(*wanted)}: {why if not found else 'several activations were observed there'}")
        return found[0]

    def __repr__(self) -> str:
        """Returns one line: the number of activations and of batches, and how many activations were skipped."""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        return f"<fxenorm.Observations: {len(self)} activations, {batches}{skipped}>"

    def rescaled(self, log_scales: Tensor | Sequence[float]) -> Observations:
        """Returns the observations as they would be after ``plan.rescale(log_scales)``, by known factors; no run is needed.

        Args:
            log_scales: (num_scales,) natural logarithms, as ``plan.balance().log_scales``.

        Raises:
            RescaleError: `log_scales` has another shape or is not finite.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> batches = [torch.randn(2, 4)]
            >>> before = plan.observe(batches)
            >>> after = before.rescaled(plan.balance().log_scales)
            >>> bool(torch.allclose(after["2", "input"].maximum, plan.observe(batches)["2", "input"].maximum, rtol=1e-5))
            True
        """
        scales = checked_log_scales(log_scales, self.num_scales)
        return dataclasses.replace(self, activations=tuple(one.rescaled(scales) for one in self.activations))

    def to_dict(self) -> dict[str, Any]:
        """Returns the observations as a JSON-compatible dict; see `from_dict`.

        Example:
            >>> import fxenorm, json, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> text = json.dumps(fxenorm.analyze(model).observe([torch.ones(2, 4)]).to_dict())
        """
        rows = [
            {
                "place": [one.module, one.direction, one.call, one.tensor, one.axis, one.entries],
                "values": [_packed(getattr(one, name).numpy(), "<f8") for name in _VALUES],
                "terms": [[int(coefficient), _packed(variables, "<i8")] for coefficient, variables in one.terms],
            }
            for one in self.activations
        ]
        told = {"num_scales": self.num_scales, "batches": self.batches, "level": self.level, "skipped": dict(self.skipped)}
        return {"format": _FORMAT, **told, "activations": rows}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Observations:
        """Returns the observations that `to_dict` stored, possibly after a trip through JSON, to the last bit.

        Raises:
            BindError: `stored` is damaged or of another format.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> seen = fxenorm.analyze(model).observe([torch.ones(2, 4)])
            >>> fxenorm.Observations.from_dict(seen.to_dict())
            <fxenorm.Observations: 5 activations, 1 batch>
        """
        if not isinstance(stored, Mapping) or stored.get("format") != _FORMAT:
            raise BindError(f"no stored observations of format {_FORMAT}: expected the dict that Observations.to_dict() returns")
        try:
            count = int(stored["num_scales"])
            activations = tuple(_observation(row, count) for row in stored["activations"])
            skipped = {str(place): str(reason) for place, reason in stored["skipped"].items()}
            return cls(activations, count, int(stored["batches"]), float(stored["level"]), skipped)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, zlib.error, binascii.Error) as error:
            detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise BindError(f"the stored observations are damaged ({detail}): run plan.observe again") from error


def named(module: str, direction: str, call: int) -> str:
    """Returns the name of a place in words, as "layer1.0.relu input of call 1"."""
    return f"{module or 'the model'} {direction}" + (f" of call {call}" if call else "")


def _observation(row: Mapping[str, Any], num_scales: int) -> Observation:
    """Returns a stored observation; raises a ValueError where its parts do not fit together."""
    module, direction, call, tensor, axis, entries = row["place"]
    minimum, maximum, mean_square, quantile = (torch.from_numpy(_unpacked(text, "<f8")) for text in row["values"])
    terms = tuple((int(coefficient), _unpacked(text, "<i8")) for coefficient, text in row["terms"])
    sizes = {value.numel() for value in (minimum, maximum, mean_square, quantile)} | {ids.size for _, ids in terms}
    if len(sizes) != 1:
        raise ValueError(f"{module} {direction} has values of {sorted(sizes)} channels")
    for _, ids in terms:
        if ids.size and (ids.min() < -1 or ids.max() >= num_scales):
            raise ValueError(f"ids of {module!r} reach from {ids.min()} to {ids.max()}, with {num_scales} variables")
    place = (str(module), str(direction), int(call), int(tensor), int(axis), int(entries))
    return Observation(*place, minimum, maximum, mean_square, quantile, terms)


def _packed(values: Any, kind: str) -> str:
    """Returns an array as text, to the last bit."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype=kind).tobytes())).decode("ascii")


def _unpacked(text: str, kind: str) -> Any:
    """Returns the array of a text that `_packed` made."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=kind).astype(kind[1:])

"""`Observations`: the ranges of activations by channel, as data that follows every rescaling by known factors."""

from __future__ import annotations

import binascii
import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BindError, OptionError
from ..weights.targets import checked_log_scales
from .landmarks import Landmarks
from .observation import Observation, named
from .observed_weight import ObservedWeight
from .packed import packed, unpacked_tensor

__all__ = ["Observations"]

_FORMAT = 2


@dataclass(frozen=True)
class Observations:
    """The activations that `Plan.observe` saw, each by channel; iterate over it, or take one by its place.

    The values are those of the weights at the time. They follow the plan: the calls that take observations first bring them to
    the weights as these are, and `Plan.follow` shows them so. `rescaled` gives those after a rescaling that you have in mind.

    Attributes:
        activations: one observation an activation, in the order in which they were met.
        num_scales: number of variables of the plan.
        batches: number of batches that the model ran on.
        level: the share of entries of a batch, from 0 to 1, that the quantile bounds.
        skipped: by place, why an activation that carries variables, or that a layer reads, or the weight of a product was not
            observed.
        layers: the paths of all linear layers and convolutions, of which a quantiser rounds weights and inputs, and the names of
            other parameters that functions multiply by activations.
        weights: the weights of these layers with their derivatives; () without ``derivatives=True``.
        output_square: the mean square of the outputs' entries, against which errors are measured; None without derivatives.
        position: (num_scales,) the sum of the plan's rescalings up to these values.
        landmarks: entries of the parameters, by which the values are told from those of other weights.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> observations = plan.observe([torch.randn(2, 4) for _ in range(3)])
        >>> observations
        <fxenorm.Observations: 5 activations, 3 batches>
        >>> result = plan.balance()
        >>> observations = plan.follow(observations)
    """

    activations: tuple[Observation, ...]
    num_scales: int
    batches: int
    level: float
    skipped: Mapping[str, str]
    layers: tuple[str, ...]
    weights: tuple[ObservedWeight, ...]
    output_square: float | None
    position: Tensor
    landmarks: Landmarks

    def __len__(self) -> int:
        """Returns the number of activations."""
        return len(self.activations)

    def __iter__(self) -> Iterator[Observation]:
        """Yields the activations in the order in which they were met."""
        return iter(self.activations)

    def __getitem__(self, place: Any) -> Observation:
        """Returns the activation at (module, "input" or "output"), with the call as a third where it is no first one.

        Where a function multiplies an activation by a parameter, this is at (parameter, "operand").

        Raises:
            OptionError: none or several were observed there.
        """
        if not isinstance(place, tuple) or len(place) not in (2, 3):
            raise OptionError(
                f"{place!r} names no activation: expected (module, 'input' or 'output') or (parameter, 'operand'), and the call "
                "if not the first"
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
        slopes = f", derivatives by {len(self.weights)} weights" if self.output_square is not None else ""
        return f"<fxenorm.Observations: {len(self)} activations{slopes}, {batches}{skipped}>"

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
        return dataclasses.replace(
            self,
            activations=tuple(one.rescaled(scales) for one in self.activations),
            weights=tuple(one.rescaled(scales) for one in self.weights),
            position=self.position + scales.to("cpu", torch.float64),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the observations as a JSON-compatible dict; see `from_dict`.

        Example:
            >>> import fxenorm, json, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> text = json.dumps(fxenorm.analyze(model).observe([torch.ones(2, 4)]).to_dict())
        """
        return {
            "format": _FORMAT,
            "num_scales": self.num_scales,
            "batches": self.batches,
            "level": self.level,
            "skipped": dict(self.skipped),
            "layers": list(self.layers),
            "output_square": self.output_square,
            "position": packed(self.position, "<f8"),
            "landmarks": self.landmarks.to_dict(),
            "activations": [one.to_dict() for one in self.activations],
            "weights": [one.to_dict() for one in self.weights],
        }

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
            count, square = int(stored["num_scales"]), stored["output_square"]
            found = cls(
                activations=tuple(Observation.from_dict(row, count) for row in stored["activations"]),
                num_scales=count,
                batches=int(stored["batches"]),
                level=float(stored["level"]),
                skipped={str(place): str(reason) for place, reason in stored["skipped"].items()},
                layers=tuple(map(str, stored["layers"])),
                weights=tuple(ObservedWeight.from_dict(row, count) for row in stored["weights"]),
                output_square=None if square is None else float(square),
                position=unpacked_tensor(stored["position"]),
                landmarks=Landmarks.from_dict(stored["landmarks"]),
            )
            if found.position.numel() != count:
                raise ValueError(f"{count} variables have {found.position.numel()} log-scales")
            return found
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, zlib.error, binascii.Error) as error:
            detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise BindError(f"the stored observations are damaged ({detail}): run plan.observe again") from error

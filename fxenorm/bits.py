"""`Bits`: how many bits a quantiser gives each layer, and which entries of a weight share one range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from .errors import OptionError

__all__ = ["Bits", "Shared"]

_LEAST, _MOST = 2, 24
"""With 1 bit a symmetric quantiser has no number but 0; above 24 float32 has no more digits to lose."""

Shared = Literal["tensor", "channel"] | int
"""Which entries of a weight share a range: all, those of an output channel, or a number of inputs of an output channel."""


@dataclass(frozen=True)
class Bits:
    """The bit widths of a quantised model: data, which rounds nothing by itself.

    Weights are rounded to whole multiples of a step, from -(2 ** (bits - 1) - 1) to that number, with one range for all entries
    that share it. An activation has one range in any case. Where it never falls below 0, its numbers go from 0 to 2 ** bits - 1.

    Attributes:
        weights: bits of a weight, from 2 to 24; None: weights stay in float.
        activations: bits of an activation that a layer reads, from 2 to 24; None: activations stay in float.
        per: the entries of a weight that share a range: "tensor": all; "channel": those of an output channel; a number: so many
            inputs of an output channel.
        layers: other bits by fnmatch pattern, on the name of a layer or of a module that it is in; the first that fits counts.
            None: the layer stays in float.
        symmetric: whether activations that never fall below 0 get signed numbers too, as some quantisers do.

    Raises:
        OptionError: a value is not one of these; the message names it.

    Example:
        >>> bits = Bits(weights=4, per="channel", layers={"head*": None})
        >>> bits
        Bits(weights=4, per='channel', layers={'head*': None})
        >>> bits.of("blocks.0.up").weight_levels, bits.of("head")
        (7, None)
    """

    weights: int | None = 8
    activations: int | None = 8
    per: Shared = "tensor"
    layers: Mapping[str, Bits | None] = field(default_factory=dict, hash=False)
    symmetric: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not _LEAST <= value <= _MOST):
                raise OptionError(f"{name}={value!r} is not valid: expected None, or an integer from {_LEAST} to {_MOST}")
        if self.per not in ("tensor", "channel") and (type(self.per) is not int or self.per < 1):
            raise OptionError(f"per={self.per!r} is not valid: expected 'tensor', 'channel', or a group size >= 1")
        if type(self.symmetric) is not bool:
            raise OptionError(f"symmetric={self.symmetric!r} is not valid: expected True or False")
        if not isinstance(self.layers, Mapping):
            raise OptionError(f"layers={self.layers!r} is not valid: expected a dict of Bits, or None, by pattern")
        for pattern, one in self.layers.items():
            _check_layer(pattern, one)
        object.__setattr__(self, "layers", dict(self.layers))

    def __repr__(self) -> str:
        """Returns the call that makes it, without defaults."""
        plain = Bits.__dataclass_fields__
        given = [name for name in plain if getattr(self, name) != (plain[name].default if name != "layers" else {})]
        return f"Bits({', '.join(f'{name}={getattr(self, name)!r}' for name in given)})"

    def of(self, layer: str) -> Bits | None:
        """Returns the bits of a layer, without `layers`; None: it stays in float.

        Args:
            layer: its name, the path of the module.

        Example:
            >>> Bits(layers={"head": Bits(weights=6)}).of("head")
            Bits(weights=6)
        """
        found = next((one for pattern, one in self.layers.items() if _fits(pattern, layer)), self)
        if found is None or (found.weights is None and found.activations is None):
            return None
        return replace(found, layers={}) if found.layers else found

    def check(self, layers: Iterable[str]) -> None:
        """Sees to it that each pattern fits a layer, so that none is misspelt.

        Args:
            layers: the names of the layers that a quantiser sees.

        Raises:
            OptionError: a pattern fits none of them.

        Example:
            >>> Bits(layers={"head*": None}).check(["body.0", "head"])
        """
        names = list(layers)
        for pattern in self.layers:
            if not any(_fits(pattern, name) for name in names):
                some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise OptionError(f"layers={{{pattern!r}: ...}} fits none of the {len(names)} quantised layers: {some}")

    @property
    def weight_levels(self) -> int | None:
        """The largest whole number that a weight is rounded to; None: weights stay in float.

        Example:
            >>> Bits(weights=8).weight_levels
            127
        """
        return None if self.weights is None else (1 << self.weights - 1) - 1

    def activation_levels(self, one_sided: bool) -> int | None:
        """Returns the largest whole number that an activation is rounded to; None: activations stay in float.

        Args:
            one_sided: whether it never falls below 0.

        Example:
            >>> Bits().activation_levels(one_sided=True), Bits().activation_levels(one_sided=False)
            (255, 127)
        """
        if self.activations is None:
            return None
        return (1 << self.activations) - 1 if one_sided and not self.symmetric else (1 << self.activations - 1) - 1

    def weight_ranges(self, shape: Sequence[int], output: int = 0, input: int = 1, groups: int = 1) -> tuple[Tensor, int]:
        """Returns which entries of a weight share a range, and how many ranges there are.

        Args:
            shape: of the weight.
            output: the axis of the output channels: 0 of a linear layer and of a convolution, 1 of a transposed convolution.
            input: the axis of the input channels.
            groups: of a transposed convolution: its groups lie along the axis of the input channels.

        Returns:
            The number of each entry's range, int64 on the CPU, of size 1 along axes on which it is the same; and their count.

        Example:
            >>> ids, count = Bits(per=2).weight_ranges((3, 4))
            >>> ids.tolist(), count
            ([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], 6)
        """
        ndim = len(shape)
        if self.per == "tensor":
            return torch.zeros((1,) * ndim, dtype=torch.int64, device="cpu"), 1
        outputs, inputs = shape[output], shape[input] if ndim > 1 else 1
        ids = torch.arange(outputs, dtype=torch.int64, device="cpu").reshape(_along(output, ndim))
        inside = inputs // groups if groups > 1 else inputs
        place = torch.arange(inputs, dtype=torch.int64, device="cpu")
        if groups > 1:
            ids = ids + outputs * (place // inside).reshape(_along(input, ndim))
        if self.per == "channel" or ndim < 2:
            return ids, outputs * groups
        many = math.ceil(inside / self.per) if isinstance(self.per, int) else 1
        part = (place % inside).div(self.per, rounding_mode="floor").reshape(_along(input, ndim))
        return ids * many + part, outputs * groups * many


def _along(axis: int, ndim: int) -> list[int]:
    """Returns the shape of a vector along one axis of several."""
    return [-1 if one == axis else 1 for one in range(ndim)]


def _fits(pattern: str, layer: str) -> bool:
    """Whether a pattern names a layer, or a module that it is in."""
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def _check_layer(pattern: object, one: object) -> None:
    """Raises an OptionError where a row of `layers` is not valid."""
    if not isinstance(pattern, str):
        raise OptionError(f"layers has the pattern {pattern!r}: expected a string")
    if one is not None and not isinstance(one, Bits):
        raise OptionError(f"layers={{{pattern!r}: {one!r}}} is not valid: expected Bits, or None for a layer that stays in float")
    if one is not None and one.layers:
        raise OptionError(f"layers={{{pattern!r}: ...}} has layers of its own: give all patterns to the outer Bits")

"""One map of a group: the layer that is divided, the layers that are multiplied, and a group that has no map."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LeftOut", "MapEntry", "MapLayer"]


@dataclass(frozen=True)
class MapLayer:
    """A layer of a map, and the part of the model's parameter that it stands for.

    Attributes:
        module: the name by which the tool finds the layer.
        parameter: the model's parameter.
        expert: place on axis 0 of a parameter that stacks experts; None: the parameter is no stack.
        rows: first row, and the row after the last, of the part of the parameter that is this layer or that moves.
    """

    module: str
    parameter: str
    expert: int | None
    rows: tuple[int, int]

    def __repr__(self) -> str:
        """Returns the name by which the tool finds the layer."""
        return self.module


@dataclass(frozen=True)
class MapEntry:
    """One map: with any positive factor s a channel, the smooth layer's rows / s and the balance layers' columns * s.

    Attributes:
        group: name of the group in `Plan.groups`.
        smooth: the layer whose rows, and bias, are divided.
        balance: all layers that read these channels; their columns are multiplied.
        norm: whether the smooth layer is a normalisation, or another layer with one weight a channel.
        repeats: how often each head of the smooth layer stands in the columns (grouped-query attention); 1: once.
        head: channels of a head where it is repeated, else all channels.
        offset: the number o that the model adds to the smooth layer's weight, which moves as (o + w) / s - o.
    """

    group: str
    smooth: MapLayer
    balance: tuple[MapLayer, ...]
    norm: bool
    repeats: int = 1
    head: int = 0
    offset: float = 0.0

    def __repr__(self) -> str:
        """Returns one line: the group, the smooth layer, the balance layers."""
        extra = f" (each head {self.repeats} times)" if self.repeats > 1 else ""
        return f"{self.group}: {self.smooth.module} -> {', '.join(layer.module for layer in self.balance)}{extra}"


@dataclass(frozen=True)
class LeftOut:
    """A group that the tool cannot express.

    Attributes:
        group: name of the group in `Plan.groups`.
        producers, consumers: its parameters.
        reason: a sentence.
    """

    group: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    reason: str

    def __repr__(self) -> str:
        """Returns one line: the group and the reason."""
        return f"{self.group}: {self.reason}"

"""What the small networks of the zoo are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """A network to build, the shapes of its inputs, and how many free scale variables it has.

    Attributes:
        build: makes the network.
        shapes: of its (random normal) inputs; a function makes inputs of other kinds.
        num_scales: the dimension, written as the sum over its groups; None where a barrier is allowed to cost some.
        offsets: by name of a parameter, the number that the network adds to it (c / k where it uses c + k w).
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] | Callable[[], tuple[Any, ...]]
    num_scales: int | None
    offsets: Mapping[str, float] = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
        """Seeded inputs."""
        random = torch.Generator().manual_seed(5)
        if callable(self.shapes):
            return self.shapes()
        return tuple(torch.randn(shape, generator=random, dtype=dtype) for shape in self.shapes)


class Net(nn.Module):
    """Named layers and a function of them: the functional style in one line."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def seq(*layers: nn.Module) -> nn.Sequential:
    """nn.Sequential, shorter."""
    return nn.Sequential(*layers)


IMAGE = ((2, 3, 11, 13),)
VECTOR = ((9, 4),)
TOKENS = ((2, 5, 4),)


def between(*middle: nn.Module) -> Callable[[], nn.Module]:
    """Convolution, something, convolution: six channels between them."""
    return lambda: seq(nn.Conv2d(3, 6, 3), *middle, nn.Conv2d(6, 2, 1))


def pair(function: Callable[[torch.Tensor], torch.Tensor], width: int = 6) -> Callable[[], nn.Module]:
    """Linear(4, 6), a function of the activations, Linear(width, 3)."""
    return lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(width, 3))

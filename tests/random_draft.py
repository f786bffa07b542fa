"""A random model while it is put together, and the ways to write its next line."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["DRAWS", "Draft", "Draw", "draw", "simple"]

SIZES = (4, 4, 4, 2, 3, 6, 8)
"""Of new axes; most are 4, so that axes of different meaning have the same size."""


@dataclass
class Draft:
    """A model while it is put together.

    Attributes:
        choose: the generator of all choices.
        values: the tensors that the next line may use, by name.
        layers: the assignments of `__init__` so far.
        lines: the lines of `forward` so far.
        draws: names of the draws that made them.
        module: holds the layers, so that the lines can be run.
        new: assignments that the line at hand needs.
        count: of the attributes made so far.
        only: the only value that the next line may use, if any.
        tokens: an input of integers, (batch, 4), that embeddings read by name.
    """

    choose: random.Random
    values: dict[str, torch.Tensor]
    tokens: torch.Tensor
    layers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)
    module: nn.Module = field(default_factory=nn.Module)
    new: list[str] = field(default_factory=list)
    count: int = 0
    only: str | None = None

    def value(self, *ndims: int) -> str:
        """The name of a value, late ones more often; with one of these numbers of axes."""
        if self.only is not None:
            return self.only
        names = [name for name in self.values if not ndims or self.values[name].ndim in ndims]
        computed = [name for name in names if name.startswith("h")]
        names = computed if computed and self.choose.random() < 0.85 else names
        if not names:
            raise LookupError("no value of this kind yet")
        return names[-1 - min(int(self.choose.expovariate(1.4)), len(names) - 1)]

    def like(self, name: str) -> str:
        """The name of a value of the same shape, another one where there is one."""
        shape = self.values[name].shape
        return self.choose.choice(
            [other for other in self.values if self.values[other].shape == shape and other != name] or [name]
        )

    def shape(self, name: str) -> list[int]:
        """Of a value."""
        return list(self.values[name].shape)

    def axis(self, name: str) -> int:
        """An axis, seldom the first of several, and counted from either end."""
        ndim = self.values[name].ndim
        axis = self.choose.randrange(ndim) if ndim == 1 or self.choose.random() < 0.15 else self.choose.randrange(1, ndim)
        return axis - ndim if self.choose.random() < 0.5 else axis

    def size(self) -> int:
        """Of a new axis."""
        return self.choose.choice(SIZES)

    def flag(self) -> bool:
        """A coin."""
        return self.choose.random() < 0.5

    def make(self, kind: str, code: str) -> str:
        """A new attribute of the model; returns how forward reads it."""
        self.count += 1
        name = f"self.{kind}{self.count}"
        self.new.append(f"{name} = {code}")
        return name

    def weight(self, *shape: int) -> str:
        """A new parameter."""
        return self.make("w", f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))")

    def index(self, size: int, count: int) -> str:
        """A new constant index; entries repeat at times."""
        entries = [self.choose.randrange(size) for _ in range(count)]
        return f"torch.tensor({entries})"

    def permutation(self, count: int) -> list[int]:
        """Of 0 .. count - 1."""
        return self.choose.sample(range(count), count)


@dataclass(frozen=True)
class Draw:
    """One way to write a line.

    Attributes:
        write: from a draft to the line's right side, or to lines in which "{y}" is the new name.
        complete: whether its rule finds every law, so that nothing may be missed in models of such draws alone.
        weight: how often it is drawn.
    """

    write: Callable[[Draft], str]
    complete: bool
    weight: float = 1.0


DRAWS: dict[str, Draw] = {}


def draw(complete: bool = False, weight: float = 1.0) -> Callable[[Callable[[Draft], str]], Callable[[Draft], str]]:
    """Registers a draw under its function's name."""

    def register(write: Callable[[Draft], str]) -> Callable[[Draft], str]:
        DRAWS[write.__name__] = Draw(write, complete, weight)
        return write

    return register


def simple(name: str, pattern: str, complete: bool = False, weight: float = 1.0, ndims: tuple[int, ...] = ()) -> None:
    """Registers a draw of a pattern: {x}, {z} values of one shape, {o} any value, {d}, {e} axes of x, {n} its size along d."""

    def write(draft: Draft) -> str:
        x = draft.value(*ndims)
        axis = draft.axis(x)
        names: dict[str, Any] = {"x": x, "z": draft.like(x), "o": draft.value(), "d": axis, "e": draft.axis(x), "y": "{y}"}
        size = draft.shape(x)[axis]
        return pattern.format(
            **names, n=size, i=draft.choose.randrange(size), half=max(1, size // 2), index=draft.index(size, draft.size())
        )

    DRAWS[name] = Draw(write, complete, weight)

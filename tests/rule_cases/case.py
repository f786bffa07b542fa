"""One row of the table of operators: a call on tensors with a different size on every axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fxenorm.rules import RuleOptions

__all__ = ["Case", "Spread", "Variant", "flat", "is_floating", "points", "real", "values_of"]

Spread = Literal["parameter", "fixed", "zeros"] | tuple[int, ...]
"""How an input carries scales: as a parameter, not at all, as zeros that the graph shows, or as an activation with one variable a
position on these axes."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        operator: the registry key whose rule the row is for.
        call: the operator on float64 tensors.
        shapes: of these tensors.
        label: tells rows of one operator apart.
        misses: the reason why less is claimed than is true; a row without one must claim everything.
        positive: whether the operator asks for positive arguments.
        draws: number of points at which the derivative is taken; operators that pick one of many entries need more.
        sizes: of the inputs, in turn; operators that saturate ask for small ones.
        dimension: the true dimension where all entries are free, written by hand, for jumps, which a derivative does not see.
        options: those that the rule may depend on.
        offsets: by input, the number that is added to it where it is a parameter: it moves as (offset + x) * factor - offset.
            Written by hand; 0 where it is left out.
        refuses_zeros: the position of an input, other than the first, that torch does not take as zeros.
    """

    operator: str
    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    label: str = ""
    misses: str = ""
    positive: bool = False
    draws: int = 12
    sizes: tuple[float, ...] = (1.0, 8.0, 0.2)
    dimension: int | None = None
    options: RuleOptions = field(default_factory=RuleOptions)
    offsets: tuple[float, ...] = ()
    refuses_zeros: int = 0

    def offset(self, position: int) -> float:
        """The offset of one input."""
        return self.offsets[position] if position < len(self.offsets) else 0.0

    @property
    def name(self) -> str:
        """Name for test reports."""
        return self.operator.removeprefix("aten::") + (f"[{self.label}]" if self.label else "")


@dataclass(frozen=True)
class Variant:
    """One way in which the inputs carry scales, and the form of the operator."""

    spreads: tuple[Spread, ...]
    form: Literal["plain", "in-place", "out"] = "plain"


def points(case: Case, seed: int, kind: str = "away from zero") -> list[torch.Tensor]:
    """Inputs of mixed signs and several sizes; every second draw is the one before it with all signs turned."""
    random = torch.Generator().manual_seed(1000 + (seed if case.positive else seed // 2))
    size = case.sizes[seed // 2 % len(case.sizes)]
    found = []
    for shape in case.shapes:
        if kind == "ties":
            x = torch.randint(-2, 3, shape, generator=random).double()
        else:
            signs = torch.randint(0, 2, shape, generator=random).double() * 2 - 1
            x = size * signs * (torch.rand(shape, generator=random, dtype=torch.float64) + 0.5)
        if kind == "near zero":
            x = x * 10.0 ** torch.randint(-8, 1, shape, generator=random)
            x = torch.where(torch.rand(shape, generator=random) < 0.2, 0.0, x)
        if kind == "large":
            x = 50 * x
        x = -x if seed % 2 else x
        found.append(x.abs() + (0.1 if kind != "near zero" else 1e-8) if case.positive else x)
    return found


def values_of(case: Case, inputs: Sequence[torch.Tensor]) -> list[Any]:
    """The operator's outputs, lists flattened, random stages seeded."""
    torch.default_generator.manual_seed(7)  # the CPU alone; torch.manual_seed looks for every device
    return list(flat(case.call(*inputs)))


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def is_floating(value: Any) -> bool:
    """Whether the value is a tensor that a scale can act on."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def real(value: torch.Tensor) -> torch.Tensor:
    """Complex tensors as pairs of real numbers."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value

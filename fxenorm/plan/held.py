"""Which variables `step` and `balance` leave alone, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .groups import Group

__all__ = ["FROZEN", "LAST", "ROUNDED", "Held", "Mask", "dead_reasons", "held_by_group", "one_sided_reasons"]

FROZEN = "requires_grad=False: a parameter that it moves is frozen"
ROUNDED = "powers of two: a parameter that it moves enters as a constant plus itself, which they would round"
LAST = "balance_last=False: it feeds a layer from which an output is reached"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Held:
    """Variables of one group that stay at 0 for one reason.

    Attributes:
        variables: positions in ``log_scales``, ascending.
        group: name of their group.
        reason: a sentence that begins with the kind: "dead", "one-sided", "requires_grad=False", "powers of two",
            "balance_last=False" or "not attained".
    """

    variables: tuple[int, ...]
    group: str
    reason: str

    def __str__(self) -> str:
        """The group, the number of its variables that are held, and the reason."""
        return f"{self.group}: {len(self.variables)} held, {self.reason}"


def one_sided_reasons(counted_negative: Mask, counted_positive: Mask) -> list[tuple[Mask, str]]:
    """The variables that lack a side whatever the weights are."""
    return [
        (~counted_negative & ~counted_positive, "one-sided: no counted weight carries it"),
        (~counted_positive & counted_negative, "one-sided: no counted weight grows with it"),
        (~counted_negative & counted_positive, "one-sided: no counted weight shrinks as it grows"),
    ]


def dead_reasons(negative: Tensor, positive: Tensor) -> list[tuple[Mask, str]]:
    """The variables that the current weights leave without a finite optimum, from log N and log P; waits for the device."""
    log_negative, log_positive = negative.cpu().numpy(), positive.cpu().numpy()
    broken = ~(log_negative < np.inf) | ~(log_positive < np.inf)
    return [
        (broken, "dead: a weight that it moves is not finite"),
        (log_positive == -np.inf, "dead: all weights that grow with it are zero"),
        (log_negative == -np.inf, "dead: all weights that shrink as it grows are zero"),
    ]


def held_by_group(groups: Sequence[Group], reasons: Sequence[tuple[Mask, str]], num_scales: int) -> tuple[Held, ...]:
    """One `Held` a group and reason; a variable gets the first reason that applies to it."""
    code = np.full(num_scales, -1, dtype=np.int64)
    for index in reversed(range(len(reasons))):
        code[reasons[index][0]] = index
    found = []
    for group in groups:
        part = code[group.variables.start : group.variables.stop]
        for index in np.unique(part[part >= 0]):
            variables = tuple((np.flatnonzero(part == index) + group.variables.start).tolist())
            found.append(Held(variables, group.name, reasons[int(index)][1]))
    return tuple(found)

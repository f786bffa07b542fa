"""`Held`: the variables that `step` and `balance` leave alone, and why."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..errors import OptionError
from ..symmetry.symmetry import Symmetry
from .attained.basis import Equation
from .groups import Group

__all__ = [
    "FROZEN",
    "LAST",
    "MEAN",
    "NOT_ATTAINED",
    "ROUNDED",
    "FrozenChoice",
    "Held",
    "Mask",
    "Sums",
    "check_frozen",
    "dead_reasons",
    "frozen_names",
    "held_by_group",
    "one_sided_reasons",
]

_MOST_TERMS = 6
"""Terms of a sum that are printed: with ids of four digits they fill half a line of 100 characters."""

FROZEN = "requires_grad=False: a parameter that it moves is frozen"
ROUNDED = "powers of two: a parameter that it moves enters as a constant plus itself, which they would round"
LAST = "balance_last=False: it feeds a layer from which an output is reached"

MEAN = "one-sided: only the ratios of its channels are determined, so the mean of their log-scales stays 0"
NOT_ATTAINED = "not attained: the norm falls for ever as it grows or shrinks, so it is left where it is"

FrozenChoice = Literal["auto", "hold", "move"]
"""How a call treats parameters with requires_grad=False: held unless nothing of the model is trained, always held, or moved."""

Mask = NDArray[np.bool_]
Sums = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(K,) log N and log P."""


@dataclass(frozen=True)
class Held:
    """Variables of one group that each stay at 0 for one reason, or one sum of variables that does.

    Attributes:
        variables: positions in ``log_scales``, ascending.
        group: name of their group; of a sum over several groups, all their names.
        reason: a sentence that begins with the kind: "dead", "one-sided", "requires_grad=False", "powers of two",
            "balance_last=False" or "not attained".
        tensors: names of the tensors that make it so.
        coefficients: of a sum, the integer in front of each variable; () where each variable stays by itself.

    Example:
        >>> import fxenorm, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> _ = model[0].requires_grad_(False)
        >>> plan.held
        (<Held g0: 8 held, requires_grad=False: a parameter that it moves is frozen>,)
    """

    variables: tuple[int, ...]
    group: str
    reason: str
    tensors: tuple[str, ...] = ()
    coefficients: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of directions: the variables, or 1 for a sum.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> _ = model[0].requires_grad_(False)
            >>> [held.count for held in plan.held]
            [8]
        """
        return 1 if self.coefficients else len(self.variables)

    def __repr__(self) -> str:
        """Returns the same as printing it, in one line."""
        return f"<Held {self}>"

    def __str__(self) -> str:
        """Returns the group, the number of its variables that are held or their sum, and the reason."""
        return f"{self.group}: {self._what()} held, {self.reason}"

    def _what(self) -> str:
        """Returns the number of variables, or their sum, as "s3 - 2 s7"."""
        if not self.coefficients:
            return str(len(self.variables))
        shown = list(zip(self.coefficients, self.variables, strict=True))[:_MOST_TERMS]
        words = " ".join(f"{'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c)} '}s{k}" for c, k in shown)
        return words.removeprefix("+ ") + (" + ..." if len(self.variables) > _MOST_TERMS else "")


def one_sided_reasons(counted_negative: Mask, counted_positive: Mask) -> list[tuple[Mask, str]]:
    """Returns masks of the variables that lack a side whatever the weights are, with the reasons."""
    return [
        (~counted_negative & ~counted_positive, "one-sided: no counted weight carries it"),
        (~counted_positive & counted_negative, "one-sided: no counted weight grows with it"),
        (~counted_negative & counted_positive, "one-sided: no counted weight shrinks as it grows"),
    ]


def dead_reasons(log_negative: NDArray[np.float64], log_positive: NDArray[np.float64]) -> list[tuple[Mask, str]]:
    """Returns masks of the variables without a finite optimum at the current log N and log P, with the reasons."""
    broken = ~(log_negative < np.inf) | ~(log_positive < np.inf)
    return [
        (broken, "dead: a weight that it moves is not finite"),
        (log_positive == -np.inf, "dead: all weights that grow with it are zero"),
        (log_negative == -np.inf, "dead: all weights that shrink as it grows are zero"),
    ]


def check_frozen(choice: str) -> None:
    """Raises an OptionError where `frozen` is none of the choices that there are."""
    if choice not in get_args(FrozenChoice):
        raise OptionError(f"frozen={choice!r} is not a valid option: expected one of {get_args(FrozenChoice)}")


def frozen_names(model: nn.Module, symmetry: Symmetry) -> frozenset[str]:
    """Returns the names of frozen parameters that carry variables; none where the model trains nothing (inference)."""
    flags = [(name, parameter.requires_grad) for name, parameter in model.named_parameters(remove_duplicate=False)]
    if not any(flag for _, flag in flags):
        return frozenset()
    named = ((symmetry.aliases.get(name, name), flag) for name, flag in flags)
    moved = symmetry.exponents.keys() - symmetry.buffers
    return frozenset(name for name, flag in named if not flag and name in moved)


def held_by_group(
    groups: Sequence[Group],
    reasons: Sequence[tuple[Mask, str]],
    num_scales: int,
    equations: Sequence[Equation] = (),
    frozen: frozenset[str] = frozenset(),
) -> tuple[Held, ...]:
    """Returns one `Held` a group and reason, and one a sum of variables; the first reason that applies is a variable's.

    Args:
        groups: of the plan.
        reasons: (K,) masks of variables, with the reasons.
        num_scales: K.
        equations: sums that stay at 0.
        frozen: names of frozen tensors.
    """
    code = np.full(num_scales, -1, dtype=np.int64)
    for index in reversed(range(len(reasons))):
        code[reasons[index][0]] = index
    found = []
    for group in groups:
        part = code[group.variables.start : group.variables.stop]
        for index in np.unique(part[part >= 0]):
            variables = tuple((np.flatnonzero(part == index) + group.variables.start).tolist())
            reason = reasons[int(index)][1]
            found.append(Held(variables, group.name, reason, _tensors([group], reason, frozen)))
    return (*found, *(_held_sum(groups, equation, frozen) for equation in equations))


def _held_sum(groups: Sequence[Group], equation: Equation, frozen: frozenset[str]) -> Held:
    """Returns a sum of variables that stays at 0; one variable alone has no coefficients."""
    starts = [group.variables.start for group in groups]
    own = [groups[place] for place in sorted({bisect_right(starts, variable) - 1 for variable, _ in equation.form})]
    coefficients = tuple(value for _, value in equation.form) if len(equation.form) > 1 else ()
    variables = tuple(variable for variable, _ in equation.form)
    names = ", ".join(group.name for group in own)
    return Held(variables, names, equation.reason, _tensors(own, equation.reason, frozen), coefficients)


def _tensors(groups: Sequence[Group], reason: str, frozen: frozenset[str]) -> tuple[str, ...]:
    """Returns the tensors of some groups to which a reason points: the frozen ones, or all."""
    names = dict.fromkeys(port.parameter for group in groups for port in (*group.producers, *group.consumers))
    return tuple(name for name in names if reason != FROZEN or name in frozen)

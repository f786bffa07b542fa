"""A user's own term as a part of an objective: checked once, and taken over to the basis of what may move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..analysis.attained.basis import Basis
from ..errors import OptionError
from .parts import Sides

__all__ = ["Own", "OwnTerm", "own_part"]

_PROBES = 8
"""Products with random signs by which the sizes of second derivatives are estimated, to some 30 %."""


@runtime_checkable
class OwnTerm(Protocol):
    """A smooth convex function of the (num_scales,) float64 log-scales that a user has written.

    To say where it has no minimum, it has either `recession(direction)`, the limit of its slope far along a direction, as a
    float; or `lower_bound`, a number below which it never falls.
    """

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the 0-d value and its (num_scales,) derivative, in float64."""

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (num_scales,) the second derivative times a direction, in float64."""


@dataclass(frozen=True, eq=False)
class Own:
    """A user's own term, times a weight, over the places of a basis.

    Attributes:
        term: the user's.
        basis: of the variables that may move; None: all of the plan's.
        log_weight: log of the weight.
    """

    term: OwnTerm
    basis: Basis | None
    log_weight: float = 0.0

    is_sided = False
    steepness = 1.0

    def weighted(self, log_weight: float) -> Own:
        """Returns the same, multiplied by exp(log_weight)."""
        return Own(self.term, self.basis, self.log_weight + log_weight)

    def _in_plan(self, vector: Tensor) -> Tensor:
        """Returns (num_scales,) a vector of places as one of the plan's variables."""
        return vector if self.basis is None else self.basis.to_plan(vector)

    def _in_basis(self, vector: Tensor) -> Tensor:
        """Returns (K,) a derivative by the plan's variables as one by places."""
        return vector if self.basis is None else self.basis.derivative(vector)

    def sides(self, log_scales: Tensor) -> Sides:
        """Returns the value and the derivative, its negative entries as N and the others as P."""
        value, gradient = self.term.value_and_gradient(self._in_plan(log_scales))
        gradient = self._in_basis(gradient.detach().to(log_scales)) * math.exp(self.log_weight)
        weighted = value.detach().to(log_scales).reshape(()) * math.exp(self.log_weight)
        return Sides(weighted, (-gradient).clamp(min=0.0).log(), gradient.clamp(min=0.0).log())

    def times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (K,) the second derivative times a direction."""
        image = self.term.curvature_times(self._in_plan(log_scales), self._in_plan(direction))
        return self._in_basis(image.detach().to(log_scales)) * math.exp(self.log_weight)

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of the lengths of the second derivative's rows, estimated by products with random signs."""
        random = torch.Generator(device="cpu").manual_seed(0)
        total = torch.zeros_like(log_scales)
        for _ in range(_PROBES):
            signs = torch.randint(0, 2, tuple(log_scales.shape), generator=random, dtype=torch.int64, device="cpu")
            total = total + self.times(log_scales, (2 * signs - 1).to(log_scales)).square()
        return (total / _PROBES).log() / 2

    def log_degree(self) -> None:
        """Nothing bounds a user's term from above, so there is no cycle for it."""
        return

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """Nothing is known of single entries of a user's term."""
        return []

    def recession(self) -> Callable[[Tensor], float] | None:
        """Returns the slope far along a (K,) direction of the places; None: the term declares a lower bound."""
        found: Any = getattr(self.term, "recession", None)
        if found is None:
            return None
        return lambda direction: math.exp(self.log_weight) * float(found(self._in_plan(direction)))


def own_part(term: Any, count: int, basis: Basis | None, device: torch.device) -> Own:
    """Returns a user's own term as a part; raises an OptionError where it breaks its contract at log-scales of 0.

    Args:
        term: the user's.
        count: number of the plan's variables.
        basis: of the variables that may move.
        device: where log-scales live.
    """
    name = type(term).__name__
    if not isinstance(term, OwnTerm):
        raise OptionError(
            f"objective={name} is no term: expected one of fxenorm.objectives, a sum of them, or an object with "
            "value_and_gradient(log_scales) and curvature_times(log_scales, direction)"
        )
    bound = getattr(term, "lower_bound", None)
    if not callable(getattr(term, "recession", None)) and not (isinstance(bound, (int, float)) and math.isfinite(bound)):
        raise OptionError(
            f"the term {name} does not say whether it has a minimum: give it recession(direction), its slope far along a "
            "direction, or lower_bound, a number below which it never falls"
        )
    zero = torch.zeros(count, dtype=torch.float64, device=device)
    value, gradient = term.value_and_gradient(zero)
    for what, tensor, size in (
        ("value", value, 1),
        ("gradient", gradient, count),
        ("curvature times a direction", term.curvature_times(zero, torch.ones_like(zero)), count),
    ):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float64 or tensor.numel() != size:
            shape = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise OptionError(f"the {what} of the term {name} is {shape}: expected a float64 tensor of {size} entries")
        if not bool(tensor.isfinite().all()):
            raise OptionError(f"the {what} of the term {name} is not finite at the current weights")
    return Own(term, basis)

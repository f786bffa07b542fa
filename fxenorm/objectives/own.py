"""A user's own term as a part of an objective: checked once, and taken over to the basis of what may move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..analysis.attained.basis import Basis
from ..errors import OptionError
from ..weights.shared.sums import OwnSums, Sums
from .parts import Sides

__all__ = ["Own", "OwnTerm", "Sharing", "own_part"]

_PROBES = 8
"""Products with random signs by which the sizes of second derivatives are estimated, to some 30 %."""


@runtime_checkable
class OwnTerm(Protocol):
    """A smooth convex function of the (num_scales,) float64 log-scales that a user has written.

    To say where it has no minimum, it has either `recession(direction)`, the limit of its slope far along a direction, as a
    float; or `lower_bound`, a number below which it never falls.

    Two more members make it faster where it has them: `curvature_diagonal(log_scales)`, the (num_scales,) second derivatives by
    each variable alone, which are estimated else; and `recessions()`, (2, num_scales), the slopes far along each variable alone,
    up and down, with NaN where `recession` is to be asked.

    Where the model is spread over processes, each of them calls it, and it says in `adds` how the answers belong together: True,
    where each is the part of one process, so that they are added up; False, where each is the whole, so that their mean is taken.
    """

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the 0-d value and its (num_scales,) derivative, in float64."""

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (num_scales,) the second derivative times a direction, in float64."""


@dataclass(frozen=True)
class Sharing:
    """The other processes that call a term.

    Attributes:
        sums: makes sums of all processes.
        size: how many there are.
    """

    sums: Sums = field(default_factory=OwnSums)
    size: int = 1

    def joined(self, adds: bool, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns the sum, or the mean, of the (count,) float64 numbers that all processes make: the same bits everywhere."""
        total = self.sums.total(make, count)
        return total if adds or self.size == 1 else total / self.size


@dataclass(frozen=True, eq=False)
class Own:
    """A user's own term, times a weight, over the places of a basis.

    Attributes:
        term: the user's.
        basis: of the variables that may move; None: all of the plan's.
        log_weight: log of the weight.
        sharing: the other processes that call it.
    """

    term: OwnTerm
    basis: Basis | None
    log_weight: float = 0.0
    sharing: Sharing = field(default_factory=Sharing)
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    is_sided = False
    steepness = 1.0

    def weighted(self, log_weight: float) -> Own:
        """Returns the same, multiplied by exp(log_weight)."""
        return Own(self.term, self.basis, self.log_weight + log_weight, self.sharing)

    def _in_plan(self, vector: Tensor) -> Tensor:
        """Returns (num_scales,) a vector of places as one of the plan's variables."""
        return vector if self.basis is None else self.basis.to_plan(vector)

    def _in_basis(self, vector: Tensor) -> Tensor:
        """Returns (K,) a derivative by the plan's variables as one by places."""
        return vector if self.basis is None else self.basis.derivative(vector)

    def sides(self, log_scales: Tensor) -> Sides:
        """Returns the value and the derivative, its negative entries as N and the others as P."""

        def own() -> Tensor:
            """Asks the term: the value in front of the derivative."""
            value, gradient = self.term.value_and_gradient(self._in_plan(log_scales))
            return torch.cat([one.detach().to(log_scales).reshape(-1) for one in (value, gradient)])

        at = self._joined(own, 1 + self._in_plan(log_scales).numel()) * math.exp(self.log_weight)
        gradient = self._in_basis(at[1:])
        return Sides(at[0], (-gradient).clamp(min=0.0).log(), gradient.clamp(min=0.0).log())

    def _joined(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns what all processes say of the term together."""
        return self.sharing.joined(bool(getattr(self.term, "adds", False)), make, count)

    def times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (K,) the second derivative times a direction."""
        at, along = self._in_plan(log_scales), self._in_plan(direction)
        image = self._joined(lambda: self.term.curvature_times(at, along).detach().to(log_scales), at.numel())
        return self._in_basis(image) * math.exp(self.log_weight)

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of the second derivatives by variable; of a term that does not tell them, an estimate."""
        if "at" not in self._known or not torch.equal(self._known["at"], log_scales):
            given = self._asked("curvature_diagonal")
            logs = self._estimated(log_scales) if given is None else self._diagonal(given, log_scales).log()
            self._known.update(at=log_scales.clone(), logs=logs + self.log_weight)
        return self._known["logs"]

    def _asked(self, member: str) -> Callable[..., Tensor] | None:
        """Returns a member of the term that speaks of single variables; None: it has none, or places are no variables."""
        found: Callable[..., Tensor] | None = getattr(self.term, member, None)
        return None if self.basis is not None and self.basis.mixes else found

    def _diagonal(self, given: Callable[[Tensor], Tensor], log_scales: Tensor) -> Tensor:
        """Returns (K,) the second derivatives by variable, as the term tells them."""
        at = self._in_plan(log_scales)
        return self._in_basis(self._joined(lambda: given(at).detach().to(log_scales), at.numel()))

    def _estimated(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of the lengths of the second derivative's rows, estimated by products with random signs."""
        random = torch.Generator(device="cpu").manual_seed(0)
        total = torch.zeros_like(log_scales)
        for _ in range(_PROBES):
            signs = torch.randint(0, 2, tuple(log_scales.shape), generator=random, dtype=torch.int64, device="cpu")
            total = total + self.times(log_scales, (2 * signs - 1).to(log_scales)).square()
        return (total / _PROBES).log() / 2 - self.log_weight

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

        def slope(direction: Tensor) -> float:
            """Returns what all processes say of one direction together."""
            along = self._in_plan(direction)
            said = self._joined(lambda: direction.new_tensor([float(found(along))]), 1)
            return math.exp(self.log_weight) * float(said)

        return slope

    def recessions(self, log_scales: Tensor) -> Tensor:
        """Returns (2, K) the slopes far along each place alone, up and down; NaN where `recession` is to be asked.

        Args:
            log_scales: (K,) any, in whose type and on whose device the slopes are.
        """
        given = self._asked("recessions")
        if given is None:
            return torch.full((2, log_scales.numel()), torch.nan, dtype=log_scales.dtype, device=log_scales.device)
        both = self._joined(lambda: given().detach().to(log_scales).reshape(-1), 2 * self._in_plan(log_scales).numel())
        return torch.stack([self._in_basis(one) for one in both.reshape(2, -1)]) * math.exp(self.log_weight)


def own_part(term: Any, count: int, basis: Basis | None, device: torch.device, sharing: Sharing) -> Own:
    """Returns a user's own term as a part; raises an OptionError where it breaks its contract at log-scales of 0.

    Args:
        term: the user's.
        count: number of the plan's variables.
        basis: of the variables that may move.
        device: where log-scales live.
        sharing: the other processes that call it.
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
    if sharing.size > 1 and not isinstance(getattr(term, "adds", None), bool):
        raise OptionError(
            f"the model is spread over {sharing.size} processes, and the term {name} does not say how their answers belong "
            "together: give it adds = True (each is a part, to be added up) or adds = False (each is the whole)"
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
    return Own(term, basis, sharing=sharing)

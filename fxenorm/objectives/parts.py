"""Parts of an objective at the current weights: sums of exponentials, their normalised form, and terms of a user's own.

Each answers by logarithms of the two sides of its derivative, P - N, so that channels whose entries are tiny beside others are
balanced too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..kernels.reference.channel_sums import is_linear, is_narrow
from ..solve.objective import Operator
from ..weights.objective import CurrentObjective

__all__ = ["Entries", "Exponentials", "Normal", "Part", "Sides"]


class Sides(NamedTuple):
    """A part at some log-scales.

    Attributes:
        value: 0-d.
        log_negative, log_positive: (K,) logs of N and P, of which the derivative is P - N - linear.
        linear: (K,) that does not change with the log-scales; None: 0.
    """

    value: Tensor
    log_negative: Tensor
    log_positive: Tensor
    linear: Tensor | None = None


class Entries(NamedTuple):
    """The entries above zero of a sum.

    Attributes:
        number: how many.
        linear: (K,) the sums of their exponents.
        log_product: the sum of their logarithms.
    """

    number: int
    linear: Tensor
    log_product: float


class Part(Protocol):
    """One part of a sum, with its weight in it."""

    @property
    def is_sided(self) -> bool:
        """Whether N and P are sums over entries, of which each grows with the other as log-scales move."""

    @property
    def steepness(self) -> float:
        """The largest exponent by which an entry follows a log-scale."""

    def weighted(self, log_weight: float) -> Part:
        """Returns the same, multiplied by exp(log_weight)."""

    def sides(self, log_scales: Tensor) -> Sides:
        """Returns the value and the sides of the derivative."""

    def times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (K,) the second derivative times a direction."""

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of the second derivatives by variable, or of a bound or an estimate of them."""

    def log_degree(self) -> Tensor | None:
        """Returns (K,) A_k of a cycle; None: there is no such cycle."""

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """Returns logs of second derivatives and the exponents (3, n) of entry, label and coefficient; of all sums in it."""


class _Last:
    """Keeps the curvature at the last log-scales: conjugate gradients ask for many products in one place."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, Operator, Tensor] | None = None

    def get(self, log_scales: Tensor, make: Callable[[], tuple[Operator, Tensor]]) -> tuple[Operator, Tensor]:
        """Returns the value for these very log-scales; nothing changes them in place."""
        if self._known is None or self._known[0] is not log_scales:
            self._known = (log_scales, *make())
        return self._known[1:]


@dataclass(frozen=True, eq=False)
class Exponentials:
    """The sum of m_e exp(q a_e . s) over some tensors, times a weight.

    Attributes:
        objective: the entries that move, as those of a norm of exponent |q|; the sign of q is in their exponents.
        log_constant: log of the sum of the entries that no variable moves; -inf: there are none.
        entries: counts the entries above zero.
        log_weight: log of the weight.
    """

    objective: CurrentObjective
    log_constant: float
    entries: Callable[[], Entries]
    log_weight: float = 0.0
    _last: _Last = field(default_factory=_Last, repr=False)

    is_sided = True

    @property
    def steepness(self) -> float:
        """The exponent times the largest coefficient's bound."""
        return self.objective.p

    def weighted(self, log_weight: float) -> Exponentials:
        """Returns the same, multiplied by exp(log_weight)."""
        return Exponentials(self.objective, self.log_constant, self.entries, self.log_weight + log_weight)

    def kept(self) -> Exponentials:
        """Returns the same with memory of its own: matrices of narrow types are the model's weights themselves."""
        own = self.objective
        objective = replace(own, matrices=[one.clone() if is_narrow(one) else one for one in own.matrices]).without_memory()
        return Exponentials(objective, self.log_constant, self.entries, self.log_weight)

    def finite(self) -> Exponentials:
        """Returns the same without entries that are not finite: what these move is held, and hides nothing of the others."""
        own, p = self.objective, self.objective.p
        matrices = [_finite(p, matrix) for matrix in own.matrices]
        if all(one is other for one, other in zip(matrices, own.matrices, strict=True)):
            return self
        objective = replace(own, matrices=matrices).without_memory()
        return Exponentials(objective, self.log_constant, self.entries, self.log_weight)

    def stacked(self) -> Exponentials:
        """Returns the same with few large matrices for many small ones."""
        return Exponentials(self.objective.stacked(), self.log_constant, self.entries, self.log_weight)

    def log_value(self, log_scales: Tensor) -> Tensor:
        """Returns the 0-d log of the sum, with its weight."""
        constant = log_scales.new_tensor(self.log_constant)
        moving = constant if self.objective.is_empty else torch.logaddexp(self.objective.log_objective(log_scales), constant)
        return moving + self.log_weight

    def sides(self, log_scales: Tensor) -> Sides:
        """Returns the sum and the sides of its derivative."""
        shift = self.log_weight + math.log(self.objective.p)
        negative, positive = self.objective.log_sums(log_scales)
        return Sides(self.log_value(log_scales).exp(), negative + shift, positive + shift)

    def times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (K,) the second derivative times a direction."""
        curvature, log_diagonal = self._curvature(log_scales)
        scale = (log_diagonal + self.log_weight + 2 * math.log(self.objective.p)).exp()
        return torch.where(log_diagonal.isfinite(), curvature.product(direction) * scale, 0.0)

    def _curvature(self, log_scales: Tensor) -> tuple[Operator, Tensor]:
        """Returns the second derivative relative to p^2 (N + P), and (K,) log(N + P)."""

        def make() -> tuple[Operator, Tensor]:
            """Makes it for new log-scales."""
            log_diagonal = torch.logaddexp(*self.objective.log_sums(log_scales))
            free, own = log_diagonal.isfinite(), self.objective
            return own.curvature(log_scales, log_diagonal, free), log_diagonal

        return self._last.get(log_scales, make)

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of the second derivatives: exact where coefficients are 1 or -1."""
        shift = self.log_weight + 2 * math.log(self.objective.p)
        return torch.logaddexp(*self.objective.log_sums(log_scales)) + shift

    def log_degree(self) -> Tensor:
        """Returns (K,) log A_k in the units of the exponents q a."""
        return (self.objective.degree * self.objective.p).log()

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """Returns the sum as one of one scalar a label."""
        logs, exponents = self.objective.aggregate(log_scales, labels, count)
        return [(logs + self.log_weight + 2 * math.log(self.objective.p), exponents)]


def _finite(p: float, matrix: Tensor) -> Tensor:
    """Returns a matrix with zeros in the place of what is not finite; the same where everything is."""
    broken = matrix.isnan() | (matrix.abs() if is_narrow(matrix) else matrix).isposinf()
    if not bool(broken.any()):
        return matrix
    return torch.where(broken, 0.0 if is_linear(p) or is_narrow(matrix) else -math.inf, matrix)


@dataclass(frozen=True, eq=False)
class Normal:
    """n log F - the sum of the entries' logarithms, F a sum of exponentials and n its number of entries, times a weight.

    The logarithms are those at log-scales of 0, and the exponents times s.

    Attributes:
        sums: the parts of F.
        log_weight: log of the weight.
    """

    sums: Sequence[Exponentials]
    log_weight: float = 0.0

    is_sided = True

    @property
    def steepness(self) -> float:
        """The largest exponent of the parts of F."""
        return max(one.steepness for one in self.sums)

    @cached_property
    def count(self) -> int:
        """The number n of entries above zero."""
        return sum(one.entries().number for one in self.sums)

    @cached_property
    def linear(self) -> Tensor:
        """(K,) the sum of the exponents of these entries."""
        return torch.stack([one.entries().linear for one in self.sums]).sum(0).to(self.sums[0].objective.held.device)

    @cached_property
    def log_product(self) -> float:
        """The sum of the logarithms of these entries at log-scales of 0."""
        found = [(one.entries(), one.log_weight) for one in self.sums]
        return sum(entries.log_product + entries.number * log_weight for entries, log_weight in found)

    def weighted(self, log_weight: float) -> Normal:
        """Returns the same, multiplied by exp(log_weight)."""
        return Normal(self.sums, self.log_weight + log_weight)

    def log_sum(self, log_scales: Tensor) -> Tensor:
        """Returns the 0-d log F at some log-scales."""
        return torch.stack([one.log_value(log_scales) for one in self.sums]).logsumexp(0)

    def _shift(self, log_scales: Tensor) -> Tensor:
        """Returns the 0-d log of the weight times n / F, by which derivatives of F are multiplied."""
        return self.log_weight + math.log(self.count) - self.log_sum(log_scales)

    def sides(self, log_scales: Tensor) -> Sides:
        """Returns the value and the sides of the derivative."""
        weight, shift = math.exp(self.log_weight), self._shift(log_scales)
        parts = [one.sides(log_scales) for one in self.sums]
        value = self.count * self.log_sum(log_scales) - self.log_product - (self.linear * log_scales).sum()
        negative = torch.stack([one.log_negative for one in parts]).logsumexp(0) + shift
        positive = torch.stack([one.log_positive for one in parts]).logsumexp(0) + shift
        return Sides(value * weight, negative, positive, self.linear * weight)

    def times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (K,) the second derivative times a direction: n (F'' / F - F' F'^T / F^2)."""
        inverse = (-self.log_sum(log_scales)).exp()
        slopes = [one.sides(log_scales) for one in self.sums]
        slope = torch.stack([one.log_positive.exp() - one.log_negative.exp() for one in slopes]).sum(0) * inverse
        bent = torch.stack([one.times(log_scales, direction) for one in self.sums]).sum(0) * inverse
        return math.exp(self.log_weight) * self.count * (bent - slope * (slope * direction).sum())

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of bounds on the second derivatives: those of F over F, times n."""
        logs = torch.stack([one.log_sizes(log_scales) for one in self.sums]).logsumexp(0)
        return logs + self._shift(log_scales)

    def log_degree(self) -> Tensor:
        """Returns (K,) log A_k of the majoriser, n F / F(s)."""
        return torch.stack([one.log_degree() for one in self.sums]).amax(0)

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """Returns the parts of F as functions of one scalar a label."""
        shift = self._shift(log_scales)
        return [(logs + shift, exponents) for one in self.sums for logs, exponents in one.aggregate(log_scales, labels, count)]

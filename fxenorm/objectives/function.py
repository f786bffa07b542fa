"""A sum of parts as one convex function of the log-scales, for solvers and for users who look at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError
from ..kernels.program import float_dtype
from ..solve.coarse import solver_of_sums
from .parts import Exponentials, Normal, Part

__all__ = ["Function"]


class _Point(NamedTuple):
    """A function at some log-scales: the value, logs of the two sides with the linear part in them, and that part."""

    value: Tensor
    log_negative: Tensor
    log_positive: Tensor
    linear: Tensor | None


@dataclass(frozen=True, eq=False)
class Function:
    """An objective at the current weights: a smooth convex function of the log-scales, to be minimised.

    Attributes:
        parts: its summands.
        labels: (K,) the group of each variable.
        means: (K,) of the variables whose mean stays 0 a number of their set, else -1; None: there are none.

    Example:
        >>> import fxenorm
        >>> plan = fxenorm.analyze(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> function = plan.objective(fxenorm.objectives.Weights())
        >>> value, gradient = function.value_and_gradient(torch.zeros(8, dtype=torch.float64))
        >>> bool(value.sqrt().isclose(plan.norm())), tuple(gradient.shape)
        (True, (8,))
    """

    parts: Sequence[Part]
    labels: Tensor
    means: Tensor | None = None

    @property
    def steepness(self) -> float:
        """The largest exponent by which an entry follows a log-scale."""
        return max((part.steepness for part in self.parts), default=1.0)

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the 0-d value after a rescaling, and its (K,) derivative by the log-scales.

        Args:
            log_scales: (K,) natural logarithms.

        Raises:
            OptionError: they have another shape.
        """
        at = self._at(self.centred(self._taken(log_scales)))
        return at.value, self.centred(at.log_positive.exp() - at.log_negative.exp())

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (K,) the second derivative at some (K,) log-scales times a (K,) direction."""
        at, along = self.centred(self._taken(log_scales)), self.centred(self._taken(direction))
        return self.centred(sum((part.times(at, along) for part in self.parts), torch.zeros_like(at)))

    def _taken(self, vector: Tensor) -> Tensor:
        """Returns a vector where this function's numbers lie, in their type; the same where it is there already."""
        if vector.shape != self.labels.shape:
            raise OptionError(f"the function takes log-scales of shape {tuple(self.labels.shape)}, not {tuple(vector.shape)}")
        return vector.to(device=self.labels.device, dtype=float_dtype(self.labels.device))

    def centred(self, vector: Tensor) -> Tensor:
        """Returns (K,) a vector less its means over the sets of variables whose mean stays 0."""
        if self.means is None:
            return vector
        places = self.means + 1
        totals = vector.new_zeros(int(places.max()) + 1).index_add_(0, places, vector)
        return torch.where(places > 0, vector - (totals / torch.bincount(places).clamp(min=1))[places], vector)

    def _at(self, log_scales: Tensor) -> _Point:
        """Returns the sums over all parts at centred log-scales."""
        found = [part.sides(log_scales) for part in self.parts]
        value = torch.stack([one.value for one in found]).sum()
        negative = torch.stack([one.log_negative for one in found]).logsumexp(0)
        positive = torch.stack([one.log_positive for one in found]).logsumexp(0)
        linear = [one.linear for one in found if one.linear is not None]
        if not linear:
            return _Point(value, negative, positive, None)
        total = torch.stack(linear).sum(0)
        negative = torch.logaddexp(negative, total.clamp(min=0.0).log())
        return _Point(value, negative, torch.logaddexp(positive, (-total).clamp(min=0.0).log()), total)

    def log_sides(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (K,) log N and log P, of which the derivative is P - N, the linear part in them."""
        at = self._at(self.centred(log_scales))
        return at.log_negative, at.log_positive

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of second derivatives by variable, or estimates; see `fxenorm.solve.convex.Convex`."""
        at = self.centred(log_scales)
        return torch.stack([part.log_sizes(at) for part in self.parts]).logsumexp(0)

    def relative_step(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) minus the derivative over the second derivative by variable."""
        at = self._at(self.centred(log_scales))
        sizes, gap = self.log_sizes(log_scales), at.log_negative - at.log_positive
        if self.means is None:
            sum_of_sides = torch.logaddexp(at.log_negative, at.log_positive)
            step = torch.where(gap.isnan(), 0.0, (gap / 2).tanh()) * (sum_of_sides - sizes).exp()
        else:
            step = self.centred(at.log_negative.exp() - at.log_positive.exp()) / sizes.exp()
        return torch.where(step.isfinite(), step, 0.0)

    def imbalances(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) |log(N / P)| over the mean exponent, as `Plan.imbalance` does, or what is near it close to balance.

        With a linear part it is four times the step to the majoriser's minimum; where sides say nothing, twice the derivative
        over the second one.
        """
        off = 2 * self.relative_step(log_scales).abs()
        if self.means is not None or not all(part.is_sided for part in self.parts):
            return off
        at = self._at(log_scales)
        if at.linear is not None and (step := self.cycle(log_scales)) is not None:
            return 4 * step.abs()
        gap = (at.log_negative - at.log_positive).abs()
        scale = (torch.logaddexp(at.log_negative, at.log_positive) - self.log_sizes(log_scales)).exp()
        return torch.where(gap.isfinite() & scale.isfinite(), gap * scale, off)

    def cycle(self, log_scales: Tensor) -> Tensor | None:
        """Returns (K,) a Jacobi cycle of all parts, or with a linear part the minimum of its majoriser; None: there is none.

        Without a linear part it is s_k = log(N_k / P_k) / A_k, at which the majoriser is as large as at 0.
        """
        degrees = [part.log_degree() for part in self.parts]
        known = [degree for degree in degrees if degree is not None]
        if self.means is not None or len(known) < len(degrees):
            return None
        degree = torch.stack(known).amax(0).exp()
        found = [part.sides(log_scales) for part in self.parts]
        negative = torch.stack([one.log_negative for one in found]).logsumexp(0)
        positive = torch.stack([one.log_positive for one in found]).logsumexp(0)
        linear = [one.linear for one in found if one.linear is not None]
        if not linear:
            step = (negative - positive) / degree
        else:
            # Of (N exp(-A t) + P exp(A t)) / A - L t: exp(A t) is the positive root of P u^2 - L u - N.
            half = torch.stack(linear).sum(0) / 2
            root = (half.square() + (negative + positive).exp()).sqrt()
            step = torch.where(half >= 0, (half + root).log() - positive, negative - (root - half).log()) / degree
        return torch.where(step.isfinite(), step, 0.0)

    def coarse(self, log_scales: Tensor, labels: Tensor, count: int, log_unit: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Returns a solver for one scalar a label; variables whose mean stays 0 are none of it."""
        if self.means is not None:
            labels = torch.where(self.means >= 0, count, labels)
        at = self.centred(log_scales)
        sums = [found for part in self.parts for found in part.aggregate(at, labels, count)]
        return solver_of_sums(sums, count, log_unit)

    def in_unit(self, log_unit: float) -> Function:
        """Returns the same, divided by exp(log_unit)."""
        return replace(self, parts=[part.weighted(-log_unit) for part in self.parts])

    def sums(self) -> list[Exponentials]:
        """Returns the sums of exponentials that are summands themselves."""
        return [part for part in self.parts if isinstance(part, Exponentials)]

    def log_value(self) -> float | None:
        """Returns the log of the value at 0 of a sum of exponentials, which may be out of range; None: it is another sum."""
        parts = self.sums()
        if not parts or len(parts) < len(self.parts):
            return None
        at = torch.zeros_like(self.labels, dtype=parts[0].objective.degree.dtype)
        return float(torch.stack([part.log_value(at) for part in parts]).logsumexp(0))

    def kept(self) -> Function:
        """Returns the same, independent of what becomes of the model's weights."""
        return replace(self, parts=[_changed(part, Exponentials.kept) for part in self.parts])

    def finite(self) -> Function:
        """Returns the same without entries that are not finite."""
        return replace(self, parts=[_changed(part, Exponentials.finite) for part in self.parts])

    def stacked(self) -> Function:
        """Returns the same with few large matrices for many small ones."""
        return replace(self, parts=[_changed(part, Exponentials.stacked) for part in self.parts])


def _changed(part: Part, change: Callable[[Exponentials], Exponentials]) -> Part:
    """Returns a part in which every sum of exponentials is changed."""
    if isinstance(part, Normal):
        return replace(part, sums=[change(one) for one in part.sums])
    return change(part) if isinstance(part, Exponentials) else part

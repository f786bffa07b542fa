"""Terms that are made of observations: `Migration` and `PredictedNoise`; they follow the plan's rescalings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..bits import Bits
from ..errors import OptionError
from ..observe.observations import Observations
from .noise.log_noise import LogNoise
from .noise.reference_point import reference_point
from .quantisers import Quantised, quantisers_of
from .terms import Scaled, Sum, Term

__all__ = ["Migration", "PredictedNoise", "following"]

_SHARPEST = 48.0
"""The exponent of the norm that stands for the largest entry: of a thousand equal entries it is 15 % larger."""

_RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class Migration(Term):
    """SmoothQuant's trade between ranges of activations and of weights, over all layers at once, weights included.

    The sum of m_c^q exp(q a_c . s) / q over the channels of all activations that layers read, m_c the largest absolute value, and
    of |w|^r exp(r a . s) / r over weights, with q = 2 alpha p and r = 2 (1 - alpha) p. At a single norm in front of layers its
    minimum is SmoothQuant's scale max|x|^alpha / |W|^(1 - alpha), with the r-norm of each column over all layers that read it in
    the place of its largest entry. Gains of norms are not counted, and an activation that several layers read counts once. At
    p = inf, with alpha = 0.5, the largest entries themselves are balanced, by `Plan.balance` of this term alone.

    Attributes:
        observations: of `Plan.observe`.
        alpha: the migration strength, between 0 and 1: the more, the more is taken from activations to weights.
        p: half the sum of both exponents, > 0; infinite with alpha = 0.5 alone.

    Raises:
        OptionError: an attribute is not valid.

    Source: Xiao et al., SmoothQuant, ICML 2023, equation 4.

    Example:
        >>> import fxenorm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> plan.balance(objective=Migration(plan.observe([torch.randn(16, 4)]), alpha=0.5)).converged
        True
    """

    observations: Observations
    alpha: float = 0.5
    p: float = 8.0

    def __post_init__(self) -> None:
        _check_observations(self.observations)
        for name in ("alpha", "p"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
            if not number or (name == "alpha" and value >= 1):
                hint = "between 0 and 1" if name == "alpha" else "> 0"
                raise OptionError(f"{name}={value!r} is not valid in Migration: expected a number {hint}")
        if math.isinf(self.p) and self.alpha != 0.5:
            raise OptionError(f"alpha={self.alpha!r} needs a finite p: at p=inf there is no strength but 0.5, so pass p=32, say")

    @property
    def powers(self) -> tuple[float, float]:
        """The exponents of activations and of weights, q and r."""
        return 2 * self.alpha * self.p, 2 * (1 - self.alpha) * self.p

    def __repr__(self) -> str:
        """Returns the call, without the observations' values."""
        return f"Migration({self.observations!r}, alpha={self.alpha:g}, p={self.p:g})"


@dataclass(frozen=True, eq=False)
class PredictedNoise(Term):
    """The logarithm of the output noise that rounding is predicted to make, relative to the outputs' mean square.

    J = sum over ranges of range^2 S / (12 levels^2), S the sum over the range's entries of the mean squared derivative of the
    outputs; each rounding error counts as independent noise. log J is convex in the log-scales, has no strength to tune, and
    is not changed by shifts that are uniform in each range, as rounding is not. To make it smooth the r-norm with r = 48 stands
    for the largest entry of a range. A ridge of 1e-4 |s - s0|^2 keeps directions that no range determines at s0, where the
    entries of each tensor are as even as can be. Entries of exactly 0 are never rounded, so that they make no noise.

    It is written as a user's own term: value_and_gradient, curvature_times, recession. Of a model that is spread over processes
    the noise of all ranges stands in one logarithm, which is no sum of parts. So each process has the observations of the whole
    model, made before it was sharded or read from a file, and each answer is the whole: ``adds`` is False.

    Attributes:
        observations: of ``plan.observe(loader, derivatives=True)``.
        bits: of the quantiser.
        ridge: the weight of the ridge, > 0.

    Raises:
        OptionError: an attribute is not valid, the observations have no derivatives, or nothing that is rounded reaches the
            outputs.

    Example:
        >>> import fxenorm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> observations = plan.observe([torch.randn(16, 4)], derivatives=True)
        >>> plan.balance(objective=PredictedNoise(observations, fxenorm.Bits(weights=4))).converged
        True
    """

    observations: Observations
    bits: Bits = field(default_factory=Bits)
    ridge: float = _RIDGE
    adds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_observations(self.observations)
        if not isinstance(self.bits, Bits):
            raise OptionError(f"bits={self.bits!r} is not valid: expected fxenorm.Bits, as Bits(weights=8, activations=8)")
        ridge = self.ridge
        if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 < ridge < math.inf:
            raise OptionError(f"ridge={ridge!r} is not valid: expected a finite number > 0")
        quantisers_of(self.observations, self.bits)

    def __repr__(self) -> str:
        """Returns the call, without the observations' values."""
        return f"PredictedNoise({self.observations!r}, {self.bits!r})"

    @cached_property
    def _quantisers(self) -> list[Quantised]:
        """All that is rounded."""
        return quantisers_of(self.observations, self.bits)

    @cached_property
    def _noise(self) -> LogNoise:
        """log J."""
        return LogNoise(self._quantisers, self.observations.num_scales, _SHARPEST)

    @cached_property
    def _centre(self) -> Tensor:
        """Where the ridge is 0."""
        return reference_point(self._quantisers, self.observations.num_scales)

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log (J / mean square of the outputs) and the ridge, 0-d, and the (num_scales,) derivative.

        Args:
            log_scales: (num_scales,) natural logarithms, from the weights of the observations on.
        """
        at = log_scales.detach().to("cpu", torch.float64)
        value, gradient = self._noise.value_and_gradient(at)
        off = at - self._centre
        value = value - math.log(self.observations.output_square or 1.0) + self.ridge * off.square().sum()
        return value.to(log_scales.device), (gradient + 2 * self.ridge * off).to(log_scales.device)

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (num_scales,) the second derivative times a (num_scales,) direction."""
        at, along = log_scales.detach().to("cpu", torch.float64), direction.detach().to("cpu", torch.float64)
        return (self._noise.curvature_times(at, along) + 2 * self.ridge * along).to(log_scales.device)

    def curvature_diagonal(self, log_scales: Tensor) -> Tensor:
        """Returns (num_scales,) the second derivative by each variable alone."""
        at = log_scales.detach().to("cpu", torch.float64)
        return (self._noise.curvature_diagonal(at) + 2 * self.ridge).to(log_scales.device)

    def recessions(self) -> Tensor:
        """Returns (2, num_scales) the slopes of log J far along each variable alone, up and down; see `recession`."""
        return self._noise.recessions()

    def recession(self, direction: Tensor) -> float:
        """Returns the slope of log J far along a direction: the ridge bounds what falls for ever, and is no reason to move."""
        return self._noise.recession(direction.detach().to("cpu", torch.float64))


def _check_observations(observations: Any) -> None:
    """Raises an OptionError where something else was given."""
    if not isinstance(observations, Observations):
        raise OptionError(f"observations={type(observations).__name__} is not valid: expected those of plan.observe")


def following(term: Any, follow: Callable[[Observations], Observations]) -> Any:
    """Returns a term in which all observations are brought to the current weights.

    Args:
        term: a term, or a sum of terms.
        follow: brings observations there, or raises.
    """
    if isinstance(term, (Migration, PredictedNoise)):
        now = follow(term.observations)
        return term if now is term.observations else dataclasses.replace(term, observations=now)
    if isinstance(term, Scaled):
        return Scaled(following(term.term, follow), term.weight)
    if isinstance(term, Sum):
        return Sum(tuple(following(one, follow) for one in term.terms))
    return term

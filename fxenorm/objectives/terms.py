"""The terms: small frozen values that say of which entries an objective is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..analysis.options import Options
from ..distributed.dtensors import is_distributed, local_part
from ..errors import OptionError

__all__ = [
    "Key",
    "Masses",
    "Normalised",
    "Scaled",
    "Sum",
    "Term",
    "Weights",
    "as_term",
    "in_words",
    "leaves_gains_out",
    "summands",
]

Key = str | tuple[str, str] | tuple[str, str, int]
"""A parameter's name; or of an activation the module, "input" or "output", and where there are several the axis."""


class Term:
    """A convex function of the log-scales; terms are added, and multiplied by numbers above zero.

    A term of your own derives from this class and defines what `OwnTerm` says; deriving only adds ``+`` and ``*``.

    Example:
        >>> 0.3 * (Weights(p=2) + Weights(p=4)) + Weights()
        0.3 * Weights(p=2) + 0.3 * Weights(p=4) + Weights()
    """

    def __repr__(self) -> str:
        """Returns the name of its class; no address, for processes compare it."""
        return f"{type(self).__name__}()"

    def __add__(self, other: Any) -> Sum:
        """Returns the sum of two terms."""
        return Sum((self, other))

    def __radd__(self, other: Any) -> Sum:
        """Returns the sum of another term and this one."""
        return Sum((other, self))

    def __mul__(self, weight: float) -> Term:
        """Returns the term, multiplied by a number above zero."""
        return Scaled(self, weight)

    __rmul__ = __mul__


@dataclass(frozen=True)
class Weights(Term):
    """The p-norm that `balance` lowers by itself, to the power p: the sum of ω |w|^p over counted entries.

    Attributes:
        p, c, biases: as `fxenorm.analyze` takes them, p finite and biases "scale" or "count"; None: the plan's own.
        gains: whether the gains of normalisations are counted, and other vectors that multiply channel by channel. Quantisers
            leave them in float; without them the channels behind a normalisation are moved against one another only, until all
            columns have equal norms: the mean of their log-scales stays 0.

    Example:
        >>> Weights(p=2, gains=False)
        Weights(p=2, gains=False)
    """

    p: float | None = None
    c: float | str | Mapping[str, float] | None = None
    biases: Literal["scale", "count"] | None = None
    gains: bool = True

    def __post_init__(self) -> None:
        if self.biases not in (None, "scale", "count"):
            raise OptionError(f"biases={self.biases!r} is not valid in Weights: expected 'scale', 'count' or None")
        if type(self.gains) is not bool:
            raise OptionError(f"gains={self.gains!r} is not valid: expected True or False")
        self.options(Options())

    def options(self, plan: Options) -> Options:
        """Returns a plan's options with those of this term; raises an OptionError where p is infinite."""
        from dataclasses import replace

        given = {name: getattr(self, name) for name in ("p", "c", "biases") if getattr(self, name) is not None}
        found = replace(plan, **given)
        if math.isinf(found.p):
            raise OptionError("p=inf is no sum over entries, so it is no term: pass Weights(p=...) with a finite p")
        return found

    def __repr__(self) -> str:
        """Returns the call that makes it, without defaults."""
        given = [f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if getattr(self, one.name) != one.default]
        return f"Weights({', '.join(given)})"


@dataclass(frozen=True, eq=False)
class Masses(Term):
    """The sum of m_e exp(power a_e . s) over the entries of some tensors, m non-negative.

    Attributes:
        tensors: by parameter name a tensor of the parameter's shape; or by site of an activation, (module, "input" or "output")
            and where there are several the axis, one number a channel. Where the model is spread over processes, each gives
            distributed tensors, or all give the same ordinary ones.
        power: how the masses follow when their parameter or activation is multiplied: 2 for squares of weights, -2 for squares of
            gradients; not 0.

    Raises:
        OptionError: a mass is negative or not finite, a tensor is missing or no tensor of numbers, all are 0, or the power is not
            valid; the message names the tensor.

    Example:
        >>> Masses({"0.weight": torch.ones(8, 4, dtype=torch.float64)}, power=-2)
        Masses(1 tensor, power=-2)
    """

    tensors: Mapping[Any, Tensor]
    power: float

    def __post_init__(self) -> None:
        power = self.power
        if isinstance(power, bool) or not isinstance(power, Real) or not math.isfinite(power) or power == 0:
            raise OptionError(f"power={power!r} is not valid: expected a finite number other than 0")
        try:
            Options(p=abs(float(power)))
        except OptionError as error:
            raise OptionError(f"power={power!r} is not valid: {str(error).partition(': ')[2]}, of either sign") from error
        if not isinstance(self.tensors, Mapping) or not self.tensors:
            raise OptionError(
                f"masses={type(self.tensors).__name__} is not valid: expected a dict of at least one tensor by name"
            )
        for key, tensor in self.tensors.items():
            _check_masses(key, tensor)
        # Of a tensor that is spread over processes, other parts may have some.
        if not any(is_distributed(tensor) or bool(tensor.any()) for tensor in self.tensors.values()):
            names = ", ".join(map(repr, list(self.tensors)[:5]))
            raise OptionError(
                f"all masses are zero, of {names}{', ...' if len(self.tensors) > 5 else ''}: nothing is to be balanced"
            )
        object.__setattr__(self, "tensors", dict(self.tensors))

    def __repr__(self) -> str:
        """Returns one line: how many tensors, and the power."""
        count = len(self.tensors)
        return f"Masses({count} tensor{'s' * (count != 1)}, power={self.power:g})"


def _check_masses(key: Any, tensor: Any) -> None:
    """Raises an OptionError where one tensor holds no masses."""
    if tensor is None:
        raise OptionError(f"the masses of {key!r} are missing (None): leave the name out, or give a tensor")
    if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.dtype == torch.bool or tensor.layout != torch.strided:
        kind = f"a tensor of type {tensor.dtype}" if isinstance(tensor, Tensor) else f"of type {type(tensor).__name__}"
        raise OptionError(f"the masses of {key!r} are {kind}: expected a dense tensor of real numbers")
    if tensor.is_meta:
        raise OptionError(f"the masses of {key!r} are on the meta device and have no values")
    if not tensor.numel():
        raise OptionError(f"the masses of {key!r} are missing: the tensor has shape {tuple(tensor.shape)}, without entries")
    tensor = local_part(tensor) if is_distributed(tensor) else tensor
    for what, wrong in (("NaN", tensor.isnan()), ("infinite", tensor.isinf()), ("negative", tensor < 0)):
        if bool(wrong.any()):
            raise OptionError(f"the masses of {key!r} are {what} in {int(wrong.sum())} of {tensor.numel()} entries")


@dataclass(frozen=True)
class Normalised(Term):
    """n log F - the sum of the logarithms of F's n entries: even entries instead of small ones.

    The arithmetic mean of the entries is compared with their geometric mean, so it does not matter by what all of them are
    multiplied; n log n is the least there is. As a function of log-scales it is n log F(s) - the sum of all exponents times s,
    and a constant. Sums and n are over entries above zero, those that no variable moves among them. It has a minimum.

    Attributes:
        term: `Weights`, `Masses`, or a sum of these.

    Raises:
        OptionError: the term is something else.

    Example:
        >>> Normalised(Weights(p=2))
        Normalised(Weights(p=2))
    """

    term: Term

    def __post_init__(self) -> None:
        for _, one in summands(self.term):
            if not isinstance(one, (Weights, Masses)):
                raise OptionError(f"Normalised takes Weights, Masses and sums of these, not {type(one).__name__}")

    def __repr__(self) -> str:
        """Returns the call that makes it."""
        return f"Normalised({self.term!r})"


@dataclass(frozen=True)
class Scaled(Term):
    """A term, multiplied by a number above zero."""

    term: Any
    weight: float

    def __post_init__(self) -> None:
        weight = self.weight
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight) or weight <= 0:
            raise OptionError(f"a term can be multiplied by a finite number > 0, not by {weight!r}: it would not stay convex")
        as_term(self.term)

    def __repr__(self) -> str:
        """Returns the summands with their weights."""
        return in_words(self)


@dataclass(frozen=True)
class Sum(Term):
    """A sum of terms, each with the weight that it was multiplied by."""

    terms: tuple[Any, ...]

    def __post_init__(self) -> None:
        for term in self.terms:
            as_term(term)

    def __repr__(self) -> str:
        """Returns the summands with their weights."""
        return in_words(self)


def as_term(term: Any) -> Any:
    """Returns a term as it is; raises an OptionError where it is none."""
    if isinstance(term, Term) or (hasattr(term, "value_and_gradient") and hasattr(term, "curvature_times")):
        return term
    raise OptionError(
        f"{term!r} is no term: expected one of fxenorm.objectives, a sum of them, or an object with value_and_gradient and "
        "curvature_times"
    )


def summands(term: Any, weight: float = 1.0) -> list[tuple[float, Any]]:
    """Returns the terms that a sum is made of, each with its weight."""
    if isinstance(term, Scaled):
        return summands(term.term, weight * float(term.weight))
    if isinstance(term, Sum):
        return [found for one in term.terms for found in summands(one, weight)]
    return [(weight, as_term(term))]


def in_words(term: Any) -> str:
    """Returns a sum as users write it."""
    named = [(weight, repr(one) if isinstance(one, Term) else f"{type(one).__name__}()") for weight, one in summands(term)]
    return " + ".join(name if weight == 1 else f"{weight:g} * {name}" for weight, name in named)


def leaves_gains_out(terms: Sequence[tuple[float, Any]]) -> bool:
    """Whether any of some summands leaves gains out, so that means of groups may stay 0."""
    return any(isinstance(one, Weights) and not one.gains for _, one in terms)

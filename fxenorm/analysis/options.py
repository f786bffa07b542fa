"""Every choice that `analyze` takes, checked once, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, get_args

from ..errors import OptionError
from ..kernels import BACKEND_NAMES, BackendName
from ..rules import APPROXIMABLE
from ..solve import SOLVER_NAMES, SolverName

__all__ = ["BatchNormChoice", "BiasChoice", "ModeChoice", "Options", "ScaleChoice", "SolverChoice", "UnknownChoice"]

BatchNormChoice = Literal["affine", "folded", "frozen", "skip"]
BiasChoice = Literal["scale", "count", "skip"]
ModeChoice = Literal["both", "train", "eval"]
UnknownChoice = Literal["barrier", "error"]
SolverChoice = Literal["auto"] | SolverName
ScaleChoice = Literal["exact", "pow2", "auto"]

_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "batchnorm": get_args(BatchNormChoice),
        "biases": get_args(BiasChoice),
        "modes": get_args(ModeChoice),
        "on_unknown": get_args(UnknownChoice),
        "solver": ("auto", *SOLVER_NAMES),
        "backend": BACKEND_NAMES,
        "scales": get_args(ScaleChoice),
    }
)

_FIRST = frozenset(
    {
        "p", "c", "batchnorm", "biases", "balance_last", "exclude", "modes", "approximate", "on_unknown", "solver", "backend",
        "scales", "max_log_scale",
    }
)  # fmt: skip
"""The options of the first stored plans: a fingerprint holds these, and a later option where it is not at its default."""

_LEAST_P, _LARGEST_P = 0.1, 1000.0
"""Below, one step of an unbalanced layer leaves the range of its type; above, powers of its weights do."""


@dataclass(frozen=True)
class Options:
    """The options of `fxenorm.analyze`, where each of them is explained.

    Numbers become floats and sequences tuples, so that equal options compare and serialise equally.

    Raises:
        OptionError: an option has a value that is not one of the documented ones, or two of them exclude each other.

    Example:
        >>> Options(p=1, exclude="*.head").exclude
        ('*.head',)
    """

    p: float = 2.0
    c: float | str | dict[str, float] = 1.0
    batchnorm: BatchNormChoice = "affine"
    biases: BiasChoice = "scale"
    balance_last: bool = True
    exclude: tuple[str, ...] = ()
    modes: ModeChoice = "both"
    approximate: tuple[str, ...] = ()
    on_unknown: UnknownChoice = "barrier"
    solver: SolverChoice = "jacobi"
    backend: BackendName = "auto"
    scales: ScaleChoice = "auto"
    max_log_scale: float | None = None
    outputs: tuple[str, ...] | None = None
    deadband: float = 0.0

    def __post_init__(self) -> None:
        _set(self, "p", _exponent(self.p))
        _set(self, "c", _layer_weights(self.c))
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        if not isinstance(self.balance_last, bool):
            raise _wrong("balance_last", self.balance_last, "True or False")
        for name in ("exclude", "approximate"):
            _set(self, name, _names(name, getattr(self, name)))
        for name in self.approximate:
            _check_choice("approximate", name, APPROXIMABLE)
        if self.outputs is not None:
            _set(self, "outputs", _names("outputs", self.outputs))
            if not self.outputs:
                raise _wrong("outputs", self.outputs, "None, or at least one pattern of the outputs to hold")
        if self.max_log_scale is not None:
            limit = _positive("max_log_scale", self.max_log_scale, "None, or a number > 0 (a natural logarithm)")
            _set(self, "max_log_scale", limit)
            if self.scales == "pow2":
                self.refuse_less_than_an_octave()
        _set(self, "deadband", _deadband(self.deadband))
        if self.batchnorm == "frozen" and self.modes == "train":
            raise OptionError(
                "batchnorm='frozen' preserves the function in eval mode only: it cannot be combined with modes='train'; "
                "pass modes='eval', or batchnorm='affine', which is exact in both modes"
            )

    def refuse_less_than_an_octave(self) -> None:
        """Raises an OptionError where no power of two but 1 lies within `max_log_scale`."""
        if self.max_log_scale is not None and self.max_log_scale < math.log(2.0):
            raise OptionError(
                f"max_log_scale={self.max_log_scale:g} is smaller than log 2 = 0.693, and powers of two move by multiples of it: "
                "nothing would ever move. Pass a larger max_log_scale, or scales='exact'"
            )

    def of_fingerprint(self) -> dict[str, Any]:
        """Returns the options by name that a fingerprint holds; an option at a default that older plans did not know is none.

        Example:
            >>> "outputs" in Options().of_fingerprint(), "outputs" in Options(outputs="logits").of_fingerprint()
            (False, True)
        """
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name in _FIRST or value != defaults[name]}


def _deadband(value: object) -> float:
    """Returns `deadband` as a float from 0 to 1."""
    valid = "a number from 0 to 1 (a natural logarithm)"
    if isinstance(value, Real) and not isinstance(value, bool) and float(value) == 0.0:
        return 0.0
    number = _positive("deadband", value, valid)
    if number > 1.0:
        raise _wrong("deadband", value, valid)
    return number


def _set(options: Options, name: str, value: Any) -> None:
    """Stores a normalised value in a frozen dataclass."""
    object.__setattr__(options, name, value)


def _wrong(name: str, value: object, valid: str) -> OptionError:
    """Returns the error for one option."""
    return OptionError(f"{name}={value!r} is not a valid option: expected {valid}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of the words in `choices`."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise _wrong(name, value, f"one of {listed}" if len(choices) > 1 else listed)


def _positive(name: str, value: object, valid: str, infinite: bool = False) -> float:
    """Returns `value` as a float > 0; raises an OptionError where it is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(name, value, valid)
    number = float(value)
    if not number > 0 or (math.isinf(number) and not infinite):
        raise _wrong(name, value, valid)
    return number


def _exponent(value: object) -> float:
    """Returns `p` as a float in the range in which powers of weights keep their digits, or infinite."""
    valid = f"a number from {_LEAST_P:g} to {_LARGEST_P:g}, or math.inf"
    try:
        number = _positive("p", value, valid, infinite=True)
    except OverflowError as error:
        raise _wrong("p", value, valid) from error
    if math.isfinite(number) and not _LEAST_P <= number <= _LARGEST_P:
        raise _wrong("p", value, valid)
    return number


def _layer_weights(c: object) -> float | str | dict[str, float]:
    """Returns `c` as a float, "adaptive" or a dict of floats by layer."""
    valid = "a number > 0, 'adaptive', or a dict from layer names to numbers > 0"
    if isinstance(c, Mapping):
        weights = {}
        for layer, weight in c.items():
            if not isinstance(layer, str):
                raise _wrong("c", c, valid)
            weights[layer] = _positive(f"c[{layer!r}]", weight, "a number > 0")
        return weights
    if isinstance(c, str):
        if c != "adaptive":
            raise _wrong("c", c, valid)
        return c
    return _positive("c", c, valid)


def _names(name: str, value: object) -> tuple[str, ...]:
    """Returns one string, or a sequence of strings, as a tuple."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, value, "a string or a sequence of strings")
    return tuple(sorted(value)) if isinstance(value, (set, frozenset)) else tuple(value)

"""One operator call as its rule sees it: fields and shapes of the arguments, and the equations that the rule may impose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..field import AnyField, Equations, ParameterFields, ParameterView, ScaleField

__all__ = ["APPROXIMABLE", "ROLES", "Call", "Field", "Made", "RuleOptions", "is_floating"]

Field = ScaleField | AnyField | ParameterView


APPROXIMABLE = (
    "celu", "clamp", "elu", "gelu", "hardshrink", "hardswish", "hardtanh", "mish", "relu6", "selu", "silu", "softplus",
    "softshrink",
)  # fmt: skip
"""Activations that are homogeneous far from their bend, which `approximate` may treat as if they were everywhere."""


ROLES = ("weight", "gamma", "bias", "slope", "other")
"""As what a call uses a parameter: the first two count in the norm, "bias" is added and counts on request."""


@dataclass(frozen=True)
class RuleOptions:
    """The options of `analyze` that change a law (see `fxenorm.analyze`)."""

    batchnorm: str = "affine"
    biases: str = "scale"
    approximate: frozenset[str] = frozenset()


def is_floating(value: Any) -> bool:
    """Whether `value` is a tensor that a scale can act on."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


@dataclass(frozen=True)
class Made:
    """An argument that is a parameter, or a part of one.

    Attributes:
        field: the argument's field.
        name: the parameter's name.
        gathered: whether which of its entries these are depends on the data.
    """

    field: Field
    name: str
    gathered: bool


def _unknown_number(name: str) -> None:
    """Says of every argument that no number is known for it."""


@dataclass
class Call:
    """One operator call, as its scale rule gets it.

    Attributes:
        operator: the operator's name, "aten::conv2d".
        arguments: by schema name, Python values and tensors' fields (`ScaleField`, `AnyField`, `ParameterView`; for lists of
            tensors a list of them).
        fakes: by schema name, the fake tensors of the same arguments.
        output: the fake output, or tuple of outputs.
        equations, parameters: the rule may add to them.
        origin: position of the node, given to every equation.
        options: see `RuleOptions`.
        constants: gives the value of an integer argument that depends on no model input, None where it is unknown.
        numbers: gives the number that all entries of a floating-point argument are, None where it is unknown.
        active: by schema name, whether the argument depends on a model input.
        unknown: names of the arguments that are, or hold, numbers which depend on the data; they read as some integer.
        unwritten: by schema name, whether the argument's memory was made without values (`empty`) and never written to.
        roles: by schema name, the role of the argument if it is a parameter: one of `ROLES`; filled by the rule.
        inexact: sentences that say how far the law is not exact; filled by the rule.
        barrier: why the call forces its inputs to zero, where it does; filled by the rule.
        own: whether the rule is a user's.
        settled: what `field` returned, by the argument's name.
        weights: by identity of an argument's field, the parameter that it is a part of.
    """

    operator: str
    arguments: Mapping[str, Any]
    fakes: Mapping[str, Any]
    output: Any
    equations: Equations
    parameters: ParameterFields
    origin: int
    options: RuleOptions
    constants: Callable[[str, int | None], torch.Tensor | None]
    active: Mapping[str, bool]
    unknown: frozenset[str] = frozenset()
    unwritten: Callable[[str], bool] = lambda name: False
    roles: dict[str, str] = field(default_factory=dict)
    inexact: list[str] = field(default_factory=list)
    barrier: str | None = None
    numbers: Callable[[str], float | None] = _unknown_number
    own: bool = False
    settled: dict[str, ScaleField] = field(default_factory=dict)
    weights: dict[int, Made] = field(default_factory=dict)

    # --- reading -------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """Returns an argument: a tensor's field, or a Python value; None where an optional one was left out."""
        if self.own and (not isinstance(name, str) or name not in self.arguments):
            told = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise KeyError(f"{told} is not the name of an argument")
        return self.arguments.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor argument `name`."""
        return tuple(self.fakes[name].shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the output, of the first one if there are several."""
        first = self.output[0] if isinstance(self.output, (tuple, list)) else self.output
        return tuple(first.shape)

    def field(self, name: str) -> ScaleField:
        """Returns the field of a tensor argument: a parameter without one gets one, a constant of zeros is left as it is."""
        self.settled[name] = self.settle(self.arguments[name])
        return self.settled[name]

    def settle(self, value: Field) -> ScaleField:
        """`value` as a field: a parameter gets the freest form, a zero constant keeps still."""
        if isinstance(value, AnyField):
            return ScaleField(value.shape)
        if isinstance(value, ParameterView):
            self._check_offset(value)
            return self.parameters.form(value, self.origin)
        return value

    def count_as_weight(self, value: Field) -> None:
        """Counts an argument that is a parameter as a weight, in a user's rule that does not say otherwise."""
        for name in self.arguments if self.own else ():
            if self.arguments[name] is value or self.settled.get(name) is value:
                self.roles.setdefault(name, "weight")

    def tensors(self) -> list[tuple[str, Field]]:
        """Returns all floating-point tensor arguments that are read, with their names, lists flattened."""
        found = []
        for name, value in self.arguments.items():
            if name == "out":
                continue
            for item, fake in _pairs(value, self.fakes.get(name)):
                if isinstance(item, (ScaleField, AnyField, ParameterView)) and is_floating(fake):
                    found.append((name, item))
        return found

    def open_if_unwritten(self, name: str, value: ScaleField | AnyField) -> ScaleField | AnyField:
        """Returns the field of an argument that is overwritten at unknown places: memory without values carries any.

        What a model computes does not depend on such memory, so every entry that is read was written.
        """
        return AnyField(self.shape(name)) if self.unwritten(name) else value

    def repeated_axes(self, name: str, shape: Sequence[int]) -> set[int]:
        """Returns the axes of `shape` along which the argument, broadcast to it, repeats itself."""
        fake = self.fakes[name]
        missing = len(shape) - fake.ndim
        repeated = [k for k, (size, step) in enumerate(zip(fake.shape, fake.stride(), strict=True)) if size == 1 or step == 0]
        return {*range(missing), *(missing + k for k in repeated)}

    def same_weight(self, value: Field, other: Field) -> Field:
        """`other`, known to be the weight `value` in another form."""
        made = self.weights.get(id(value))
        if made is not None:
            self.weights[id(other)] = replace(made, field=other)
        return other

    # --- imposing ------------------------------------------------------------------------------------------------

    def zero(self, value: Field) -> None:
        """Requires that the tensor is left as it is: its field is 0."""
        if isinstance(value, ParameterView):
            self.give(value, ScaleField(value.shape))
        elif isinstance(value, ScaleField):
            self.equations.require_zero(value, self.origin)

    def constant(self, value: ScaleField, axes: Sequence[int]) -> ScaleField:
        """Requires that the field does not change along `axes`; returns it with ids of size 1 there."""
        return self.equations.require_constant(value, axes, self.origin)

    def equal(self, a: ScaleField, b: ScaleField) -> None:
        """Requires that both carry the same field."""
        self.equations.require_equal(a, b, self.origin)

    def give(self, view: ParameterView, wanted: ScaleField) -> None:
        """Creates the parameter's field so that `view` carries `wanted`."""
        self._check_offset(view)
        self.parameters.give(view, wanted, self.origin)

    def uses(self, view: ParameterView) -> None:
        """Notes that the values of a parameter matter to the result, though nothing is asked of its field."""
        self._check_offset(view)
        self.parameters.use(view, self.origin)

    def _check_offset(self, view: ParameterView) -> None:
        """Notes the reason where a parameter is held because other constants are added to it elsewhere."""
        if self.parameters.disagrees(view):
            known = self.parameters.offsets[view.name]
            self.barrier = f"{view.name} moves as {_affine(known)} elsewhere and as {_affine(view.offset)} here, so it is held"


def _affine(offset: float) -> str:
    """Returns the affine image in words, "1 + w", for messages."""
    return f"{offset:g} + w" if offset else "w"


def _pairs(value: Any, fake: Any) -> list[tuple[Any, Any]]:
    """(field, fake tensor) of an argument that is a tensor or a list of tensors."""
    if isinstance(value, (list, tuple)) and isinstance(fake, (list, tuple)):
        return list(zip(value, fake, strict=True))
    return [(value, fake)]

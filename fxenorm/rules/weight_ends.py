"""Notes, at a contraction, the fields that a weight reads and writes: the ends of its channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..field import AnyField, ParameterView, ScaleField, Term
from .call import Call, Field

__all__ = ["Operand", "note_weight", "operand_of"]


@dataclass(frozen=True)
class Operand:
    """One factor of a contraction.

    Attributes:
        value: its field; a parameter may have none as yet.
        letters: the names of its axes.
        name: of the parameter that it is made of, "" where it is no weight.
        gathered: whether it is a part of the parameter that depends on the data.
        first: whether the contraction is the first use of the parameter, and of all of it.
    """

    value: Field
    letters: str
    name: str
    gathered: bool
    first: bool


def operand_of(call: Call, value: Field, letters: str) -> Operand:
    """Returns a factor as it is before the contraction's law is applied."""
    known = call.weights.get(id(value))
    if isinstance(value, ParameterView):
        whole = value.name not in call.parameters.fields and all(step.backward for step in value.steps)
        return Operand(value, letters, value.name, known is not None and known.gathered, whole)
    return Operand(value, letters, "" if known is None else known.name, known is not None and known.gathered, False)


def note_weight(
    call: Call, weight: Operand, other: Sequence[Term], other_letters: str, out: Sequence[Term], out_letters: str, order: str
) -> None:
    """Notes both sides of a weight that a contraction uses, if it is new.

    Args:
        call: the call.
        weight: the weight.
        other: the other factor's field, as arrays with one axis for each of `order`.
        other_letters: the names of its axes.
        out: the result's field.
        out_letters: the names of its axes.
        order: the names of all axes.
    """
    ends = call.parameters.ends
    if not weight.name or weight.name in ends.whole or isinstance(weight.value, AnyField):
        return
    own = call.parameters.look(weight.value) if isinstance(weight.value, ParameterView) else weight.value
    if not isinstance(own, ScaleField):
        return
    if weight.first:
        ends.whole.add(weight.name)
    elif not ends.new_part(weight.name, own):
        return
    sizes = _sizes(call, weight, own)
    position = {letter: k for k, letter in enumerate(order)}
    for side, terms, letters in (("input", other, other_letters), ("output", out, out_letters)):
        ends.note(
            weight.name, side, terms, {position[x]: size for x, size in sizes.items() if x in letters and x in order}, call.origin
        )


def _sizes(call: Call, weight: Operand, own: ScaleField) -> Mapping[str, int]:
    """Returns the size of each axis that the parameter has; axes along which it was repeated are none of its own."""
    sizes = {letter: size for letter, size in zip(weight.letters, own.shape, strict=True) if size > 1}
    entries = math.prod(call.parameters.shapes.get(weight.name, own.shape))
    if weight.gathered or math.prod(own.shape) > entries:
        varying = {letter: own.varies_along(axis) for axis, letter in enumerate(weight.letters)}
        sizes = {letter: size for letter, size in sizes.items() if varying[letter]}
    return sizes

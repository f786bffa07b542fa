"""Parameters before their first use: their field is created in the form that this use needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from .equations import Equations
from .scale_field import ScaleField, simplify

__all__ = ["ParameterFields", "ParameterView", "Step"]

ENTRYWISE = 65_536
"""Up to this many entries a parameter whose use asks for no form gets one variable an entry; above, one a place on each axis."""


@dataclass(frozen=True, eq=False)
class Step:
    """One structural operator between a parameter and its use.

    Attributes:
        forward: the operator on fields.
        backward: its inverse on fields, with the equations that it needs (None where it has none, as for a slice).
    """

    forward: Callable[[ScaleField], ScaleField]
    backward: Callable[[ScaleField], ScaleField] | None


@dataclass(frozen=True, eq=False)
class ParameterView:
    """A parameter without a field as yet, seen through structural operators.

    Attributes:
        name: the parameter's name.
        shape: the shape of the view.
        steps: the operators that lead from the parameter to the view.
    """

    name: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()

    def then(self, shape: tuple[int, ...], step: Step) -> ParameterView:
        """The view behind one more operator, whose result has `shape`."""
        return ParameterView(self.name, shape, (*self.steps, step))


@dataclass
class ParameterFields:
    """The fields of all parameters of a model, by name, created once and kept over all uses and modes."""

    equations: Equations
    shapes: dict[str, tuple[int, ...]]
    fields: dict[str, ScaleField] = field(default_factory=dict)

    def look(self, view: ParameterView) -> ScaleField | ParameterView:
        """The field of `view` if its parameter has one already, else the view itself."""
        born = self.fields.get(view.name)
        if born is None:
            return view
        for step in view.steps:
            born = step.forward(born)
        return born

    def give(self, view: ParameterView, wanted: ScaleField, origin: int) -> None:
        """Create the parameter's field so that `view` carries the field `wanted`."""
        if self.look(view) is view and all(step.backward for step in view.steps):
            for step in reversed(view.steps):
                wanted = step.backward(wanted)  # type: ignore[misc]
            self.fields[view.name] = wanted
        else:
            self.equations.require_equal(self.form(view), wanted, origin)

    def free(self, shape: tuple[int, ...]) -> ScaleField:
        """A field of new variables, as free as the size allows: one an entry, or one a position on each axis."""
        if math.prod(shape) <= ENTRYWISE or sum(size > 1 for size in shape) <= 1:
            return self.equations.fresh(shape)
        axes = [self.equations.fresh(shape, [axis]) for axis, size in enumerate(shape) if size > 1]
        return ScaleField(shape, simplify(term for f in axes for term in f.terms))

    def form(self, view: ParameterView) -> ScaleField:
        """The field of `view`; where its parameter has none, one is created that is as free as its size allows."""
        if view.name not in self.fields:
            self.fields[view.name] = self.free(self.shapes[view.name])
        found = self.look(view)
        if isinstance(found, ParameterView):
            raise TypeError(f"the parameter {view.name!r} has no field after it was given one")
        return found

"""Parameters before their first use: their field is created in the form that this use needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .channel_ends import ChannelEnds
from .equations import Equations
from .scale_field import ScaleField, simplify

__all__ = ["ParameterFields", "ParameterView", "Step"]

ENTRYWISE = 65_536
"""Up to this many entries a parameter whose use asks for no form gets one variable an entry; above, one a place on each axis.
So no large weight costs an id an entry: 64 Ki ids are half a MiB, those of a weight of 4096 x 4096 would be 128 MiB."""


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
    """A parameter without a field as yet, seen through structural operators and as an affine image.

    The view's entries are factor * (offset + w), w those of the parameter: 1 + w has offset 1. Its field is that of offset + w.

    Attributes:
        name: the parameter's name.
        shape: the shape of the view.
        steps: the operators that lead from the parameter to the view.
        offset: the number that is added to the parameter, in its own units; 0 where none is.
        factor: by which number it is multiplied; None: by numbers that are not known or not all the same.
    """

    name: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    offset: float = 0.0
    factor: float | None = 1.0

    def then(self, shape: tuple[int, ...], step: Step) -> ParameterView:
        """Returns the view behind one more operator, whose result has `shape`."""
        return replace(self, shape=shape, steps=(*self.steps, step))

    def plus(self, number: float) -> ParameterView | None:
        """Returns the view plus a number in every entry; None where that has no offset of its own, as the factor is not known."""
        offset = self.offset + number / self.factor if self.factor else math.nan
        return replace(self, offset=offset) if math.isfinite(offset) else None

    def multiplied(self, number: float | None) -> ParameterView:
        """Returns the view times a number that is not 0, None where it is not known."""
        factor = None if number is None or self.factor is None else self.factor * number
        return replace(self, factor=factor if factor and math.isfinite(factor) else None)


@dataclass
class ParameterFields:
    """The fields of all parameters of a model, by name, created once and kept over all uses and modes.

    A parameter that enters as offset + w has the field of that sum, and the offset is kept beside it. One offset in all uses:
    where another is met, both uses are held.
    """

    equations: Equations
    shapes: dict[str, tuple[int, ...]]
    fields: dict[str, ScaleField] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    """By name, the offset of the first use; filled before there is a field where a use asks for none."""
    births: dict[str, int] = field(default_factory=dict)
    """By name, the origin of the use that created the field."""
    ends: ChannelEnds = field(default_factory=ChannelEnds)

    def look(self, view: ParameterView) -> ScaleField | ParameterView:
        """Returns the field of `view` if its parameter has one already and the view its offset, else the view itself."""
        born = self.fields.get(view.name)
        if born is None or self.disagrees(view):
            return view
        for step in view.steps:
            born = step.forward(born)
        return born

    def disagrees(self, view: ParameterView) -> bool:
        """Whether the parameter was used with another offset before."""
        return self.offsets.get(view.name, view.offset) != view.offset

    def use(self, view: ParameterView, origin: int) -> None:
        """Notes that the view's values matter: with this offset its parameter moves, or not at all."""
        if self.disagrees(view):
            self._hold(view.name, origin)
        self.offsets.setdefault(view.name, view.offset)

    def give(self, view: ParameterView, wanted: ScaleField, origin: int) -> None:
        """Creates the parameter's field so that `view` carries the field `wanted`."""
        self.use(view, origin)
        if view.name not in self.fields and all(step.backward for step in view.steps):
            for step in reversed(view.steps):
                wanted = step.backward(wanted)  # type: ignore[misc]
            self._born(view.name, wanted, origin)
        else:
            self.equations.require_equal(self.form(view, origin), wanted, origin)

    def free(self, shape: tuple[int, ...]) -> ScaleField:
        """Returns a field of new variables, as free as the size allows: one an entry, or one a position on each axis."""
        if math.prod(shape) <= ENTRYWISE or sum(size > 1 for size in shape) <= 1:
            return self.equations.fresh(shape)
        axes = [self.equations.fresh(shape, [axis]) for axis, size in enumerate(shape) if size > 1]
        return ScaleField(shape, simplify(term for f in axes for term in f.terms))

    def form(self, view: ParameterView, origin: int) -> ScaleField:
        """Returns the field of `view`; a parameter without one gets one that is as free as its size allows."""
        self.use(view, origin)
        if self.disagrees(view):
            return ScaleField(view.shape)
        if view.name not in self.fields:
            self._born(view.name, self.free(self.shapes[view.name]), origin)
        found = self.look(view)
        if isinstance(found, ParameterView):
            raise TypeError(f"the parameter {view.name!r} has no field after it was given one")
        return found

    def hold(self, name: str, origin: int) -> None:
        """Requires that every entry of the parameter stays as it is, if it has a field."""
        field = self.fields.get(name)
        if field is not None:
            self.equations.require_zero(field, origin)

    def _hold(self, name: str, origin: int) -> None:
        """Holds a parameter that is used with several offsets: it stays as it is, also where its field comes later."""
        self.hold(name, origin)
        self._born(name, ScaleField(self.shapes[name]), origin)

    def _born(self, name: str, field: ScaleField, origin: int) -> None:
        """Creates the field of a parameter; the first origin stays."""
        self.fields[name] = field
        self.births.setdefault(name, origin)

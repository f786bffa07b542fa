"""Slices of stacked weights that a router picks: calls that do the same at each position are followed slice by slice.

Each position shows one slice; which one depends on the data. A call that treats every position alone has, at a position, the
field that its rule finds for the slice there. So the rule runs on slices in place of positions, and tensors of one index meet
slice by slice. Everywhere else the field must be the same for all slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ...field import AnyField, ParameterView, ScaleField
from ...field.picked import Picked, axes_numbered, narrowed, numbered_positions, pick
from ...rules import Call, Rule, is_floating
from ...rules.outside_operators import grouped_by_expert
from ...rules.position_axes import MOVING, axes_of_call
from ..graph.arguments import bound_arguments, flat, nodes_in, operator_name
from ..graph.known_values import KnownValues
from ..graph.sizes import Sizes
from ..graph.storage import Storage, written_arguments
from .index_names import IndexNames
from .written_memory import is_in_turn, written_pieces

__all__ = ["PickedCall", "Picks"]

LARGEST = 1024
"""Stacks of up to this many slices are followed slice by slice: each gets variables of its own. A longer stack is a
vocabulary rather than a set of experts: its rows share what their columns carry."""

_PICKING = frozenset({"aten::index", "aten::index_select"})
_GROUPED = frozenset({"aten::_grouped_mm", "transformers::grouped_mm_fallback"})


@dataclass(frozen=True)
class PickedCall:
    """A call of which the rule sees slices in place of positions.

    Attributes:
        arguments: by name, the fields of slices.
        fakes, output: fake tensors of their shapes.
        rule: another rule, where positions need one.
        wrap: from the field of the result by slice to that of the result.
    """

    arguments: dict[str, Any]
    fakes: dict[str, Any]
    output: Any
    rule: Callable[[Rule], Rule]
    wrap: Callable[[Any], Any]

    def on_slices(self, rule: Rule, call: Call) -> tuple[Rule, Call]:
        """Returns the rule and the call that it sees."""
        return self.rule(rule), replace(call, fakes=self.fakes, output=self.output)


class Picks:
    """Finds the calls of a graph that can be followed slice by slice.

    Args:
        graph: the graph.
        storage, sizes, known: its shared memory, sizes and known values.
        probe: runs the rule of a call on other fields; None where that imposes anything.
    """

    def __init__(
        self,
        graph: fx.Graph,
        storage: Storage,
        sizes: Sizes,
        known: KnownValues,
        probe: Callable[[fx.Node, Mapping[str, Any], int], Any],
    ) -> None:
        self._sizes, self._known, self._probe = sizes, known, probe
        self._written: set[fx.Node] = set()
        # Memory whose writes follow one another, each read through its own result only: they are calls like others.
        self._in_turn: dict[fx.Node, int] = {}
        self._carrying: set[int] = set()
        self.possible = any(operator_name(node) in _PICKING | _GROUPED for node in graph.nodes)
        if self.possible:
            for position, members in enumerate(written_pieces(graph, storage)):
                self._written |= members
                if is_in_turn(members, storage):
                    self._in_turn |= dict.fromkeys(members, position)
            self._names = IndexNames(graph, self._written)

    def follow(self, node: fx.Node, result: Any) -> None:
        """Notes a result: a write to the memory of slices is followed through its result."""
        if node in self._in_turn and any(isinstance(value, Picked) for value in flat(result)):
            self._carrying.add(self._in_turn[node])

    def follows(self, node: fx.Node) -> bool:
        """Whether writes to the node's memory need no note, as later readers read the results of the writes."""
        return self._in_turn.get(node) in self._carrying

    def call(
        self, node: fx.Node, values: Mapping[fx.Node, Any], read: Callable[[fx.Node], Any], origin: int
    ) -> PickedCall | None:
        """Returns how a call is followed slice by slice; None where it is not. Imposes nothing.

        Args:
            node: the call.
            values: by argument, its value as it is kept.
            read: gives the value of an argument that is not picked.
            origin: of the call.
        """
        if not self.possible or (node in self._written and node not in self._in_turn):
            return None
        name = _name(node)
        picked = {source: value for source, value in values.items() if isinstance(value, Picked)}
        if not picked and name not in _PICKING | _GROUPED:
            return None
        if any(map(self._sizes.is_open, (node, *values))):
            return None
        if name in _GROUPED:
            return self._grouped(node, values, picked, origin)
        if not picked:
            return self._picking(node, values, origin)
        if len({value.index for value in picked.values()}) > 1 or len({value.count for value in picked.values()}) > 1:
            return None
        bound = bound_arguments(node)
        tensors = [source for value in bound.values() for source in nodes_in(value)]
        if len(tensors) == 1 and name in MOVING:
            return self._moving(node, bound, picked[tensors[0]], origin)
        return self._meeting(node, bound, picked, read, origin)

    # --- where slices are picked ---------------------------------------------------------------------------------

    def _picking(self, node: fx.Node, values: Mapping[fx.Node, Any], origin: int) -> PickedCall | None:
        """Returns the call that picks slices, ``stack[:, index]``, by slice."""
        bound = bound_arguments(node)
        stack = bound["self"]
        if operator_name(node) == "aten::index":
            named = [(axis, index) for axis, index in enumerate(bound["indices"]) if index is not None]
        else:
            named = [(bound["dim"] % max(self._sizes.of(stack).ndim, 1), bound["index"])]
        if len(named) != 1 or not isinstance(stack, fx.Node) or stack in self._written:
            return None
        axis, index = named[0]
        value, fake = values[stack], self._sizes.of(index)
        known = self._known.value(index) is not None or fake.dtype not in (torch.int32, torch.int64)
        name = None if known else self._names.name("index", index)
        if name is None or fake.ndim < 1 or fake.numel() < 2 or not isinstance(value, (ScaleField, ParameterView)):
            return None
        if not 2 <= value.shape[axis] <= LARGEST or (isinstance(value, ScaleField) and not value.varies_along(axis)):
            return None
        shape = tuple(self._sizes.of(node).shape)
        found = pick(value, axis, shape, fake.ndim, name, origin)
        arguments = _with(bound, {"self": found.value})
        fakes = {"self": _fake(self._sizes.of(node), found.value.shape)}

        def as_it_is(rule: Rule) -> Rule:
            return replace(rule, function=lambda call: found.value)

        return PickedCall(arguments, fakes, fakes["self"], as_it_is, lambda value: _wrapped(replace(found, value=value)))

    def _grouped(
        self, node: fx.Node, values: Mapping[fx.Node, Any], picked: Mapping[fx.Node, Picked], origin: int
    ) -> PickedCall | None:
        """Returns a grouped product on slices: rows sorted by expert, each times the weight of its own."""
        bound = bound_arguments(node)
        first, second, ends = list(bound)[:3]
        tokens, stack, offsets = bound[first], bound[second], bound[ends]
        rest = [source for name in list(bound)[3:] for source in nodes_in(bound[name])]
        fakes = {name: self._sizes.of(bound[name]) for name in (first, second)}
        if not isinstance(offsets, fx.Node) or rest or (fakes[first].ndim, fakes[second].ndim) != (2, 3):
            return None
        name, value, weight = self._names.name("offsets", offsets), values[tokens], values[stack]
        count, rows = fakes[second].shape[0], fakes[first].shape[0]
        if name is None or not isinstance(weight, (ScaleField, ParameterView)) or not 2 <= count <= LARGEST or rows < 2:
            return None
        if tokens in picked:
            if (value.index, value.axes, value.count) != (name, (0,), count):
                return None
            value = value.value
        elif isinstance(value, ScaleField) and not value.varies_along(0):
            value = ScaleField((1, value.shape[1]), value.terms)
        else:
            return None
        shape = tuple(self._sizes.of(node).shape)
        fakes[first] = _fake(fakes[first], value.shape)
        output = _fake(self._sizes.of(node), (count, shape[1]))
        arguments = _with(bound, {first: value, second: weight})

        def wrap(result: Any) -> Any:
            return _wrapped(Picked(shape, (0,), name, result, origin)) if not isinstance(result, AnyField) else AnyField(shape)

        return PickedCall(arguments, fakes, output, lambda rule: replace(rule, function=grouped_by_expert), wrap)

    # --- where they are followed ---------------------------------------------------------------------------------

    def _moving(self, node: fx.Node, bound: Mapping[str, Any], picked: Picked, origin: int) -> PickedCall | None:
        """Returns a call of one tensor on slices: its rule shows where the positions go."""
        key = next(key for key, value in bound.items() if isinstance(value, fx.Node))
        positions = math.prod(picked.shape[axis] for axis in picked.axes)
        shown = self._probe(node, _with(bound, {key: numbered_positions(picked.shape, picked.axes)}), 2 * positions)
        outputs = self._sizes.of(node)
        many = isinstance(outputs, (list, tuple))
        if shown is None or not all(map(is_floating, flat(outputs))):
            return None
        axes = [axes_numbered(value, positions) for value in (shown if many else [shown])]
        if any(found is None for found in axes):
            return None
        arguments = _with(bound, {key: picked.value})
        fakes = {key: _fake(self._sizes.of(bound[key]), picked.value.shape)}
        return self._followed(outputs, axes, picked, arguments, fakes, origin)  # type: ignore[arg-type]

    def _meeting(
        self,
        node: fx.Node,
        bound: Mapping[str, Any],
        picked: Mapping[fx.Node, Picked],
        read: Callable[[fx.Node], Any],
        origin: int,
    ) -> PickedCall | None:
        """Returns a call of several tensors, of which some are picked by one index."""
        tensors = {key: value for key, value in bound.items() if any(True for _ in nodes_in(value))}
        output = self._sizes.of(node)
        if not all(map(is_floating, (output, *(self._sizes.of(source) for source in node.all_input_nodes)))):
            return None

        def each(value: Any, function: Callable[[fx.Node], Any]) -> Any:
            return [function(item) for item in value] if isinstance(value, (list, tuple)) else function(value)

        shapes = {key: each(value, lambda n: tuple(self._sizes.of(n).shape)) for key, value in tensors.items()}
        axes = {key: each(value, lambda n: picked[n].axes if n in picked else None) for key, value in tensors.items()}
        equation = str(bound.get("equation", ""))
        followed = axes_of_call(_name(node), shapes, axes, tuple(output.shape), equation)
        if followed is None:
            return None
        found, out = followed
        any_picked = next(iter(picked.values()))
        sizes = tuple(any_picked.shape[axis] for axis in any_picked.axes)
        if tuple(output.shape[axis] for axis in out) != sizes:
            return None
        fields: dict[str, Any] = {}
        fakes: dict[str, Any] = {}
        for key, value in tensors.items():
            nodes, along = (value, found[key]) if isinstance(value, (list, tuple)) else ([value], [found[key]])
            narrow = [self._narrow(n, picked.get(n), sizes, where, read) for n, where in zip(nodes, along, strict=True)]
            if any(item is None for item in narrow):
                return None
            new = [_fake(self._sizes.of(n), item.shape) for n, item in zip(nodes, narrow, strict=True)]
            fields[key], fakes[key] = (narrow, new) if isinstance(value, (list, tuple)) else (narrow[0], new[0])
        return self._followed(output, [out], any_picked, _with(bound, fields), fakes, origin)

    def _narrow(
        self, node: fx.Node, picked: Picked | None, sizes: Sequence[int], axes: Sequence[int], read: Callable[[fx.Node], Any]
    ) -> Any:
        """Returns one argument's field by slice; None where it differs from position to position."""
        if picked is not None:
            same = tuple(picked.shape[axis] for axis in picked.axes) == tuple(sizes) and tuple(axes) == picked.axes
            return picked.value if same else None
        value = read(node)
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
        if isinstance(value, AnyField):
            return AnyField(shape)
        if isinstance(value, ScaleField):
            return None if any(value.varies_along(axis) for axis in axes) else ScaleField(shape, value.terms)
        return value if value.shape == shape else None

    def _followed(
        self,
        outputs: Any,
        axes: Sequence[tuple[int, ...]],
        picked: Picked,
        arguments: dict[str, Any],
        fakes: dict[str, Any],
        origin: int,
    ) -> PickedCall:
        """Returns the call on slices, whose outputs have their positions on `axes`."""
        many = isinstance(outputs, (list, tuple))
        parts = list(outputs) if many else [outputs]
        new = [_fake(part, narrowed(tuple(part.shape), where, picked.count)) for part, where in zip(parts, axes, strict=True)]

        def wrap(result: Any) -> Any:
            wrapped = [
                AnyField(tuple(part.shape))
                if isinstance(value, AnyField)
                else _wrapped(Picked(tuple(part.shape), where, picked.index, value, origin))
                for part, where, value in zip(parts, axes, result if many else [result], strict=True)
            ]
            return wrapped if many else wrapped[0]

        return PickedCall(arguments, fakes, new if many else new[0], lambda rule: rule, wrap)


def _name(node: fx.Node) -> str:
    """Returns the operator's name, without the mark of one that works in place."""
    name = operator_name(node)
    return name.removesuffix("_") if written_arguments(node) else name


def _wrapped(picked: Picked) -> Picked | ScaleField:
    """Returns the field of a result, by position where all slices carry the same."""
    if isinstance(picked.value, ScaleField) and not any(picked.value.varies_along(axis) for axis in picked.axes):
        return ScaleField(picked.shape, picked.value.terms)
    return picked


def _with(bound: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments in their order, tensors by their fields; tensors without one are left out."""
    plain = (key for key, value in bound.items() if key in fields or not any(True for _ in nodes_in(value)))
    return {key: fields.get(key, bound[key]) for key in plain}


def _fake(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Returns a fake tensor of another shape."""
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")

"""Entries of parameters that a trace never read (the end of a table of positions, say): other inputs would read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from ..field import Equations, Ids, ParameterFields, ScaleField
from ..rules import RuleOptions, find_rule, is_floating
from ..trace.traced_model import TracedModel
from .graph.arguments import bound_arguments, flat, operator_name, replaced
from .graph.facts import GraphFacts
from .walk.calls import Calls

__all__ = ["unread_positions"]

_SELECTING = frozenset(
    {
        "aten::slice", "aten::select", "aten::narrow", "aten::index", "aten::index_select", "aten::split",
        "aten::split_with_sizes", "aten::chunk", "aten::unbind", "aten::tensor_split", "aten::unsafe_chunk", "aten::unsafe_split",
        "aten::diagonal",
    }
)  # fmt: skip


@dataclass
class _Reads(Equations):
    """Equations that nobody solves: variables in them count as read."""

    seen: list[Ids] = field(default_factory=list)

    def mark(self, value: Any) -> None:
        """Marks every entry of the fields in `value` as read."""
        for item in flat(value):
            if isinstance(item, ScaleField):
                self.seen += [ids.ravel() for _, ids in item.terms]

    def require_zero(self, fields: ScaleField, origin: int) -> None:
        """Marks every entry of the field as read."""
        self.mark(fields)

    def require_equal(self, a: ScaleField, b: ScaleField, origin: int) -> None:
        """Marks every entry of both fields as read."""
        self.mark([a, b])

    def require_constant(self, fields: ScaleField, axes: Sequence[int], origin: int) -> ScaleField:
        """Marks the field as read where it varies along `axes`."""
        self.mark([f for f in [fields] if any(f.varies_along(axis) for axis in axes)])
        return super().require_constant(fields, axes, origin)


def unread_positions(traced: Sequence[TracedModel], facts_of: Callable[[TracedModel], GraphFacts]) -> dict[str, list[Ids]]:
    """Returns, by parameter name, for each axis the positions at which no trace read any entry; other parameters are left out.

    Every axis of a parameter is followed through the operators that move entries, on numbers in place of scales.

    Args:
        traced: the graphs.
        facts_of: gives the facts about one of them.
    """
    read: dict[str, list[np.ndarray[Any, np.dtype[np.bool_]]]] = {}
    whole: set[str] = set()
    for graph in traced:
        chosen = {node: graph.placeholders[node.name].name for node in _selected(graph)}
        for node in graph.graph.nodes:
            known = graph.placeholders.get(node.name)
            if known is not None and known.kind == "parameter" and node not in chosen and node.users:
                whole.add(known.name)
        if not chosen:
            continue
        follower = _Follower(facts_of(graph), list(chosen))
        for node, name in chosen.items():
            masks = follower.masks(node)
            old = read.setdefault(name, masks)
            read[name] = [a | b for a, b in zip(old, masks, strict=True)]
    missing = {name: [np.flatnonzero(~mask) for mask in masks] for name, masks in read.items() if name not in whole}
    return {name: axes for name, axes in missing.items() if any(len(axis) for axis in axes)}


def _selected(traced: TracedModel) -> list[fx.Node]:
    """Parameters that only structural operators read, one of which selects."""
    found = []
    for node in traced.graph.nodes:
        known = traced.placeholders.get(node.name)
        if known is None or known.kind != "parameter" or not is_floating(node.meta.get("val")):
            continue
        stack, seen = [node], {node}
        while stack:
            users = [user for user in stack.pop().users if user not in seen]
            if any(operator_name(user) in _SELECTING for user in users):
                found.append(node)
                break
            moved = [user for user in users if _moves(user)]
            seen.update(moved)
            stack += moved
    return found


def _moves(node: fx.Node) -> bool:
    """Whether the node only moves entries of one tensor."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    rule = find_rule(operator_name(node), node.target._overloadname or "default")
    shape = getattr(node.meta.get("val"), "shape", ())
    return rule is not None and rule.family == "structural" and all(isinstance(size, int) for size in shape)


class _Follower:
    """Runs the structural rules of one graph on fields that number the positions of each axis of some parameters."""

    def __init__(self, facts: GraphFacts, parameters: Sequence[fx.Node]) -> None:
        self.reads = _Reads()
        self.sizes = facts.sizes
        self.calls = Calls(facts, ParameterFields(self.reads, {}), RuleOptions())
        self.numbers: dict[fx.Node, list[ScaleField]] = {}
        values: dict[fx.Node, Any] = {}
        for node in parameters:
            shape = tuple(node.meta["val"].shape)
            self.numbers[node] = [self.reads.fresh(shape, [axis]) for axis in range(len(shape))]
            values[node] = ScaleField(shape, tuple(term for axis in self.numbers[node] for term in axis.terms))
        for node in facts.traced.graph.nodes:
            if node.op in ("call_function", "output") and any(source in values for source in node.all_input_nodes):
                result = self._step(node, values)
                if result is not None:
                    values[node] = result

    def _step(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Returns the node's value if it moves entries; else marks its arguments as read."""
        if node.op == "call_function" and _moves(node):
            if not isinstance(node.target, torch._ops.OpOverload):
                holder = values[node.args[0]]  # type: ignore[index]
                if isinstance(holder, (list, tuple)):
                    return holder[node.args[1]]  # type: ignore[index]
            else:
                return self._run(node, values)
        self.reads.mark([values.get(source) for source in node.all_input_nodes])
        return None

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Returns the value of a node by its structural rule."""

        def of(source: fx.Node) -> Any:
            if source in values:
                return values[source]
            fake = self.sizes.of(source)
            return ScaleField(tuple(fake.shape)) if isinstance(fake, torch.Tensor) else fake

        arguments = {key: replaced(value, of) for key, value in bound_arguments(node).items()}
        rule, call = self.calls.of(node, arguments, self.reads, 0)
        return rule.function(call)  # type: ignore[union-attr]

    def masks(self, node: fx.Node) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
        """Returns for each axis of the parameter which positions were read."""
        seen = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self.reads.seen]))
        found = []
        for axis, numbers in enumerate(self.numbers[node]):
            size = numbers.shape[axis]
            ids = numbers.terms[0][1].ravel() if numbers.terms else np.zeros(size, dtype=np.int64)
            found.append(np.isin(ids, seen))
        return found

"""Reading the arguments of graph nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

__all__ = ["BoundCall", "BoundCalls", "bound_arguments", "flat", "is_item", "nodes_in", "operator_name", "replaced"]


def operator_name(node: fx.Node) -> str:
    """Returns the ATen operator's name, as "aten::relu"; "" for other nodes."""
    return _name(node.target) if isinstance(node.target, torch._ops.OpOverload) else ""


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Returns the call's arguments by schema name, defaults included."""
    args, kwargs = node.args, node.kwargs
    values = {}
    for position, (name, by_name_alone, default) in enumerate(_signature(node.target)):
        if position < len(args) and not by_name_alone:
            values[name] = args[position]
        else:
            values[name] = kwargs.get(name, default)
    return values


@cache
def _name(operator: torch._ops.OpOverload) -> str:
    """Returns the name that the operator's schema gives it."""
    return str(operator._schema.name)


@cache
def _signature(operator: torch._ops.OpOverload) -> tuple[tuple[str, bool, Any], ...]:
    """Returns of each argument of an operator its name, whether it is given by name alone, and its default."""
    arguments = operator._schema.arguments
    return tuple((one.name, one.kwarg_only, one.default_value if one.has_default_value() else None) for one in arguments)


@dataclass(frozen=True, eq=False)
class BoundCall:
    """A node that calls an ATen operator, with its arguments by schema name.

    Attributes:
        operator, overload: their names, as "aten::add" and "Tensor".
        arguments: all of them, defaults included.
        nodes: the nodes that an argument is or holds, of each argument that has some.
    """

    operator: str
    overload: str
    arguments: dict[str, Any]
    nodes: dict[str, tuple[fx.Node, ...]]


class BoundCalls:
    """The calls of a graph, each bound when it is first asked for."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, BoundCall] = {}

    def of(self, node: fx.Node) -> BoundCall:
        """Returns the call that a node is."""
        if node not in self._known:
            arguments = bound_arguments(node)
            holders = ((name, value) for name, value in arguments.items() if isinstance(value, (fx.Node, list, tuple)))
            nodes = {name: found for name, value in holders if (found := tuple(nodes_in(value)))}
            overload = node.target._overloadname or "default"  # type: ignore[union-attr]
            self._known[node] = BoundCall(operator_name(node), overload, arguments, nodes)
        return self._known[node]


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """Returns the nodes in an argument that is a node or a (nested) list."""
    if isinstance(value, (list, tuple)):
        return (item for item in flat(value) if isinstance(item, fx.Node))
    return iter((value,) if isinstance(value, fx.Node) else ())


def replaced(value: Any, function: Callable[[fx.Node], Any]) -> Any:
    """Returns an argument with its nodes replaced."""
    if isinstance(value, fx.Node):
        return function(value)
    if isinstance(value, (list, tuple)):
        return [replaced(item, function) for item in value]
    return value


def flat(value: Any) -> Iterator[Any]:
    """Yields the items of a value that may be a nested list, without None."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    elif value is not None:
        yield value


def is_item(node: fx.Node) -> bool:
    """Returns whether the node takes one output of a call that has several."""
    return getattr(node.target, "__name__", "") == "getitem"

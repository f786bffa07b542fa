"""Reading the arguments of graph nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

__all__ = ["bound_arguments", "flat", "is_item", "nodes_in", "operator_name", "replaced"]


def operator_name(node: fx.Node) -> str:
    """Returns the ATen operator's name, as "aten::relu"; "" for other nodes."""
    return str(node.target._schema.name) if isinstance(node.target, torch._ops.OpOverload) else ""


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Returns the call's arguments by schema name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    values = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            values[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            values[argument.name] = node.kwargs[argument.name]
        else:
            values[argument.name] = argument.default_value if argument.has_default_value() else None
    return values


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """Yields the nodes in an argument that is a node or a (nested) list."""
    return (item for item in flat(value) if isinstance(item, fx.Node))


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

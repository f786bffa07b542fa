"""Names for the index tensors of a graph: two indices that are sure to be equal have one name."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import fx

from ..graph.arguments import is_item, operator_name

__all__ = ["IndexName", "IndexNames"]

IndexName = tuple[str, int]
"""(as what the index is used, number of its value)."""

_SAME_ORDER = frozenset(
    {
        "aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::unsqueeze",
        "aten::squeeze", "aten::alias", "aten::clone", "aten::contiguous", "aten::detach", "aten::ravel",
    }
)  # fmt: skip
"""Operators whose result has the same entries in the same order."""

_DETERMINED = _SAME_ORDER | {
    "aten::select", "aten::slice", "aten::transpose", "aten::permute", "aten::t", "aten::expand", "aten::split", "aten::chunk",
    "aten::unbind", "aten::argmax", "aten::argmin", "aten::topk", "aten::sort", "aten::argsort", "aten::to", "aten::add",
    "aten::sub", "aten::mul", "aten::floor_divide", "aten::remainder", "aten::clamp", "aten::cumsum",
}  # fmt: skip
"""Operators whose result is the same at every call with the same arguments."""


class IndexNames:
    """Numbers the values of a graph; nodes that are sure to have the same value get the same number.

    Args:
        graph: the graph.
        written: the nodes whose memory is written to somewhere: they hold one value now and another later.
    """

    def __init__(self, graph: fx.Graph, written: Set[fx.Node]) -> None:
        self._written = written
        self._numbers: dict[fx.Node, int] = {}
        table: dict[Any, int] = {}
        for position, node in enumerate(graph.nodes):
            key: Any = node
            constant = written.isdisjoint([node, *node.all_input_nodes])
            if constant and (operator_name(node) in _DETERMINED or is_item(node)):
                key = (str(node.target), self._key(node.args), self._key(tuple(sorted(node.kwargs.items()))))
            self._numbers[node] = table.setdefault(key, position)

    def name(self, kind: str, node: fx.Node) -> IndexName | None:
        """Returns the name of the index `node`, used as `kind`; None where it is written to somewhere."""
        while node not in self._written and operator_name(node) in _SAME_ORDER and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return None if node in self._written else (kind, self._numbers[node])

    def _key(self, value: Any) -> Any:
        """Returns an argument in a form that can be compared: nodes by the numbers of their values."""
        if isinstance(value, fx.Node):
            return ("node", self._numbers[value])
        if isinstance(value, (list, tuple)):
            return tuple(self._key(item) for item in value)
        return (type(value).__name__, str(value))

"""The nodes of a graph that share memory, so that a write through one is seen through the others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import fx

from .arguments import bound_arguments, nodes_in, operator_name

__all__ = ["Storage", "may_return_input", "written_arguments"]

# Operators that hand back their input itself in some modes or dtypes, though their schema does not say so.
_MAY_RETURN_INPUT = {
    "aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout", "aten::type_as",
    "aten::broadcast_tensors", "aten::meshgrid", "aten::einsum", "aten::atleast_1d", "aten::atleast_2d", "aten::atleast_3d",
    "aten::to", "aten::reshape", "aten::contiguous", "aten::flatten", "aten::view_as_complex", "aten::view_as_real",
    "aten::resolve_conj", "aten::resolve_neg", "aten::tile",
    "aten::lift_fresh_copy",  # stands for the tensor that forward got from Python, which may share an array's memory
}  # fmt: skip


def may_return_input(node: fx.Node) -> bool:
    """Whether it depends on modes, dtypes or strides if the call hands back its input or a copy."""
    return operator_name(node) in _MAY_RETURN_INPUT


def written_arguments(node: fx.Node) -> list[tuple[fx.Node, int | None]]:
    """(argument, position of the output that holds its new value or None) for each argument that the call writes to."""
    written = _written(node.target) if isinstance(node.target, torch._ops.OpOverload) else ()
    if not written:
        return []
    given = ((node.args[at] if at < len(node.args) else node.kwargs.get(name), output) for at, name, output in written)
    return [(argument, output) for value, output in given for argument in nodes_in(value)]


@cache
def _written(operator: torch._ops.OpOverload) -> tuple[tuple[int, str, int | None], ...]:
    """(position, name, position of the output that holds its new value or None) for each argument that the operator writes to."""
    schema = operator._schema
    # detach_ is marked as a write, but changes no value.
    if not schema.is_mutable or schema.name == "aten::detach_":
        return ()
    found = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        before = argument.alias_info.before_set
        outputs = [k for k, r in enumerate(schema.returns) if r.alias_info is not None and r.alias_info.before_set & before]
        found.append((position, argument.name, outputs[0] if outputs else None))
    return tuple(found)


@cache
def _shared(operator: torch._ops.OpOverload) -> tuple[str, ...]:
    """The names of the arguments whose memory an output of the operator may share."""
    schema = operator._schema
    shared = [r.alias_info.before_set for r in schema.returns if r.alias_info is not None]
    if not shared:
        return ()
    infos = [(argument.name, argument.alias_info) for argument in schema.arguments if argument.alias_info is not None]
    # The parts of a list of views (chunk, split, unbind) are marked by a wildcard instead of the argument's own letter.
    return tuple(name for name, info in infos if "*" in info.after_set or any(info.before_set & other for other in shared))


class Storage:
    """Sets of nodes that may share memory (union-find over the graph)."""

    def __init__(self, graph: fx.Graph) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        self._members: dict[fx.Node, list[fx.Node]] = {}
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.written = any(written_arguments(node) for node in graph.nodes if node.op == "call_function")
        if not self.written:
            return
        for node in graph.nodes:
            for source in self.sources(node):
                self._join(node, source)

    def sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yields the arguments whose memory the node's output may share."""
        if node.op != "call_function":
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            yield from nodes_in(node.args)
            return
        if may_return_input(node):
            yield from nodes_in(node.args)
            return
        shared = _shared(node.target)
        values = bound_arguments(node) if shared else {}
        for name in shared:
            yield from nodes_in(values[name])

    def _root(self, node: fx.Node) -> fx.Node:
        while self._parent.get(node, node) is not node:
            self._parent[node] = self._parent.get(self._parent[node], self._parent[node])
            node = self._parent[node]
        return node

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        a, b = self._root(a), self._root(b)
        if a is not b:
            self._parent[b] = a
            self._members.setdefault(a, [a]).extend(self._members.pop(b, [b]))

    def members(self, node: fx.Node) -> list[fx.Node]:
        """Returns all nodes that may share memory with `node`, itself included."""
        return self._members.get(self._root(node), [node])

    def read_later(self, node: fx.Node, after: fx.Node) -> list[fx.Node]:
        """Returns the other nodes of the same memory that are read behind the node `after`."""
        limit = self.order[after]
        return [
            other
            for other in self.members(node)
            if other is not node and other is not after and any(self.order[user] > limit for user in other.users)
        ]

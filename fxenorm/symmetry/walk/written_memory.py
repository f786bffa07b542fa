"""Pieces of memory that a graph writes to, and whether their writes simply follow one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...trace.hold import HOLD
from ..graph.arguments import is_item, operator_name
from ..graph.storage import Storage, written_arguments

__all__ = ["is_in_turn", "written_pieces"]


def written_pieces(graph: fx.Graph, storage: Storage) -> list[set[fx.Node]]:
    """Nodes that share memory which is written to somewhere. The outputs of a call that makes several tensors share none."""
    pieces: dict[Any, list[Any]] = {}

    def piece(key: Any) -> list[Any]:
        return pieces.setdefault(key, [key])

    for node in graph.nodes if storage.written else ():
        for source in storage.sources(node):
            mine = piece(node)
            other = piece((source, node.args[1]) if is_item(node) and _makes_all(source) else source)
            if mine is not other:
                other += mine
                pieces.update((key, other) for key in mine)
    targets = (target for node in graph.nodes for target, _ in written_arguments(node))
    found = {id(members): members for members in map(piece, targets)}
    return [{member for member in members if isinstance(member, fx.Node)} for members in found.values()]


def is_in_turn(members: set[fx.Node], storage: Storage) -> bool:
    """Whether nothing that was made before a write to a piece of memory is read behind it, but for the write's result."""
    order = storage.order
    for node in members:
        name = operator_name(node)
        if node.op != "call_function" or name == HOLD or any(word in name for word in ("strided", "set_", "resize")):
            return False
    writes = [node for node in members if written_arguments(node)]
    for write in writes:
        if len(written_arguments(write)) > 1:
            return False
        before = (other for other in members if order[other] < order[write])
        if any(order[user] > order[write] for other in before for user in other.users):
            return False
    targets = {user for node in members for user in node.users if any(target is node for target, _ in written_arguments(user))}
    return targets <= set(writes)


def _makes_all(node: fx.Node) -> bool:
    """Whether all outputs of a call are new."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    return node.op == "call_function" and len(schema.returns) > 1 and all(part.alias_info is None for part in schema.returns)

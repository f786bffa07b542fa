"""Tensors that every call of forward writes before it reads them, as the pruned weight of a layer: no state, so not held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from .traced_model import TracedModel

__all__ = ["drop_holds_of_what_is_overwritten", "mark_holds", "mark_read"]

_OVERWRITES, _READS = "overwrites", "reads"


def mark_holds(graph: fx.Graph, target: Any, reason: str, overwritten: Sequence[int | None]) -> None:
    """Notes on the nodes that hold for this reason, in order, the identity of the tensor that was in the place before."""
    holds = [node for node in graph.nodes if node.target is target and node.args[1] == reason]
    if len(holds) == len(overwritten):
        for node, identity in zip(holds, overwritten, strict=True):
            node.meta[_OVERWRITES] = identity


def mark_read(node: fx.Node, identity: int) -> None:
    """Notes that a node is a tensor that was there before forward."""
    node.meta[_READS] = identity


def drop_holds_of_what_is_overwritten(traced: Sequence[TracedModel]) -> None:
    """Removes the holds of places that every graph writes and no graph reads before: the next call sees its own value."""
    graphs = [graph for item in traced for graph in _graphs(item)]
    read = {node.meta[_READS] for graph in graphs for node in graph.nodes if _READS in node.meta and node.users}
    written = [{node.meta[_OVERWRITES] for node in graph.nodes if _OVERWRITES in node.meta} for graph in graphs]
    always = set.intersection(*written) - read - {None} if written else set()
    for graph in graphs:
        for node in list(graph.nodes):
            if node.meta.get(_OVERWRITES) in always:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


def _graphs(traced: TracedModel) -> Iterator[fx.Graph]:
    """Yields the graph, and those of other paths and of the second size."""
    yield traced.graph
    for other in (*traced.paths, *(() if traced.second is None else (traced.second,))):
        yield from _graphs(other)

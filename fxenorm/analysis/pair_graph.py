"""The pair graph: layers as nodes, pairs as edges; depth, order and export are read off it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..symmetry.symmetry import Symmetry
from .groups import layer_of, multiplies
from .pairs import Pair

if TYPE_CHECKING:
    import networkx

__all__ = ["last_layers", "layer_depths", "pair_graph"]


def pair_graph(symmetry: Symmetry, pairs: Iterable[Pair]) -> networkx.MultiDiGraph[Any]:
    """Returns the layers and pairs as a graph.

    Args:
        symmetry: gives the layers: every one with a parameter that multiplies, in registration order.
        pairs: the edges, producer to consumer.

    Returns:
        A ``networkx.MultiDiGraph``; edges carry ``group``, ``channels`` and ``operators``.
    """
    import networkx

    graph: networkx.MultiDiGraph[Any] = networkx.MultiDiGraph()
    graph.add_nodes_from(dict.fromkeys(layer_of(name) for name in symmetry.shapes if multiplies(symmetry, name)))
    for pair in pairs:
        graph.add_edge(pair.producer, pair.consumer, group=pair.group, channels=pair.channels, operators=pair.operators)
    return graph


def layer_depths(graph: networkx.MultiDiGraph[Any]) -> dict[str, int]:
    """Returns, by layer, the number of pairs on the longest path that leads to it.

    Layers on a cycle (a module used twice) count as one step and share one depth.

    Args:
        graph: as `pair_graph` makes it.

    Returns:
        Depth by layer, 0 for layers that no pair leads to.
    """
    import networkx

    # A plain DiGraph first: parallel edges only cost time here.
    condensed = networkx.condensation(networkx.DiGraph(graph))
    depths: dict[Any, int] = {}
    for component in networkx.topological_sort(condensed):
        depths[component] = max((depths[before] + 1 for before in condensed.predecessors(component)), default=0)
    return {layer: depths[component] for layer, component in condensed.graph["mapping"].items()}


def last_layers(symmetry: Symmetry) -> frozenset[str]:
    """Returns the layers from which an output of the model is reached without another layer.

    A layer here is an operator that reads a parameter as a weight; normalisations are looked through.

    Args:
        symmetry: its flows are searched backwards from every node that nobody reads, in all modes.

    Returns:
        Names of layers.
    """
    last: set[str] = set()
    for flow in symmetry.flows.values():
        read = {source for node in flow for source in node.inputs}
        pending = [position for position in range(len(flow)) if position not in read]
        seen = set(pending)
        while pending:
            node = flow[pending.pop()]
            weights = {layer_of(use.name) for use in node.parameters if use.role == "weight"}
            if weights:
                last |= weights
                continue
            new = set(node.inputs) - seen
            seen |= new
            pending.extend(new)
    return frozenset(last)

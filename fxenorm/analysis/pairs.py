"""Pairs: a layer that writes a group, a layer that reads it, and the operators that lie between."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..symmetry.symmetry import FlowNode, Symmetry
from .groups import group_name, groups_of_each, layer_of, multiplies

__all__ = ["Pair", "build_pairs", "short_operator"]

Signs = Mapping[str, Mapping[int, frozenset[int]]]
"""By parameter, by group, the signs (-1, +1) of its coefficients."""


@dataclass(frozen=True)
class Pair:
    """Two layers joined by a path through the graph that carries a group and meets no other layer of that group.

    Attributes:
        producer: the layer that writes the group.
        consumer: the layer that reads it. In attention, where two layers' outputs scale in opposite directions,
            the one whose output is divided.
        group: the group's name.
        channels: number of scale variables in the group.
        operators: short names of the operators on a shortest such path, in order.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> pair = plan.pairs[0]
        >>> pair.producer, pair.consumer, pair.operators
        ('0', '2', ('relu',))
    """

    producer: str
    consumer: str
    group: str
    channels: int
    operators: tuple[str, ...]

    def __repr__(self) -> str:
        """Returns one line: the two layers, the group, and how many operators lie between them."""
        count = len(self.operators)
        between = f"{self.channels:,} channel{'s' * (self.channels != 1)}, {count} operator{'s' * (count != 1)} between"
        return f"<Pair {self.producer} -> {self.consumer}: {self.group}, {between}>"


@dataclass
class _GroupFlow:
    """The positions of nodes of one mode's graph at which one group lies, each in graph order."""

    carriers: list[int]
    writers: dict[int, list[str]]
    opposed: dict[int, list[str]]
    readers: dict[int, list[str]]


def short_operator(operator: str) -> str:
    """Returns an operator's name without overload and in-place mark: "relu_.default" -> "relu"."""
    name = operator.split(".", 1)[0]
    return name[:-1] if name.endswith("_") and not name.endswith("__") and len(name) > 1 else name


def build_pairs(symmetry: Symmetry) -> tuple[Pair, ...]:
    """Finds all pairs of a symmetry, in the evaluation graph first, and completes them from the training graph.

    Args:
        symmetry: the free scale variables and the operators that carry them.

    Returns:
        Pairs without duplicates (producer, consumer, group), in the order of groups and then of the graph.
    """
    signs = _signs(symmetry)
    found: dict[tuple[int, str, str], tuple[str, ...]] = {}
    for mode in sorted(symmetry.flows, key=lambda mode: mode != "eval"):
        flow = symmetry.flows[mode]
        users = _users(flow)
        for group, places in _places(flow, signs).items():
            for producer, consumer, operators in _pairs_of_group(flow, users, places):
                found.setdefault((group, producer, consumer), operators)
    sizes = [int(size) for size in symmetry.group_starts[1:] - symmetry.group_starts[:-1]]
    return tuple(
        Pair(producer, consumer, group_name(group), sizes[group], operators)
        for (group, producer, consumer), operators in sorted(found.items(), key=lambda item: item[0][0])
    )


def _signs(symmetry: Symmetry) -> Signs:
    """Returns the signs with which each multiplying parameter carries each group."""
    terms = [(name, term) for name, terms in symmetry.exponents.items() if multiplies(symmetry, name) for term in terms]
    signs: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for (name, (coefficient, _)), groups in zip(terms, groups_of_each([ids for _, (_, ids) in terms], symmetry), strict=True):
        for group in groups:
            signs[name][group].add(1 if coefficient > 0 else -1)
    return {name: {group: frozenset(values) for group, values in groups.items()} for name, groups in signs.items()}


def _users(flow: Sequence[FlowNode]) -> list[list[int]]:
    """Returns, by position, the positions that read the node there."""
    users: list[list[int]] = [[] for _ in flow]
    for position, node in enumerate(flow):
        for source in dict.fromkeys(node.inputs):
            users[source].append(position)
    return users


def _places(flow: Sequence[FlowNode], signs: Signs) -> dict[int, _GroupFlow]:
    """Returns, by group, the nodes that carry, write and read it."""
    places: dict[int, _GroupFlow] = defaultdict(lambda: _GroupFlow([], {}, {}, {}))
    for position, node in enumerate(flow):
        for group in node.carried:
            places[group].carriers.append(position)
        for use in node.parameters:
            if use.role not in ("weight", "gamma"):
                continue
            layer = layer_of(use.name)
            for group, values in signs.get(use.name, {}).items():
                carried = group in node.carried
                read = any(group in flow[source].carried for source in node.inputs)
                place = places[group]
                if carried and 1 in values:
                    place.writers.setdefault(position, []).append(layer)
                if read and -1 in values:
                    place.readers.setdefault(position, []).append(layer)
                elif carried and -1 in values:
                    place.opposed.setdefault(position, []).append(layer)
    return places


def _pairs_of_group(
    flow: Sequence[FlowNode], users: Sequence[Sequence[int]], places: _GroupFlow
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields (producer, consumer, operators between) for one group in one graph."""
    carriers, layers = set(places.carriers), places.writers.keys() | places.opposed.keys() | places.readers.keys()
    opposed = {start: _paths(flow, users, start, carriers, layers) for start in places.opposed} if places.writers else {}
    for start, producers in places.writers.items():
        paths = _paths(flow, users, start, carriers, layers)
        for end, consumers in places.readers.items():
            if end in paths:
                yield from _named(producers, consumers, paths[end])
        for other, consumers in places.opposed.items():
            meeting = _meeting(flow, paths, opposed[other], carriers, layers)
            if meeting is not None:
                yield from _named(producers, consumers, (*paths[meeting], short_operator(flow[meeting].operator)))


def _named(
    producers: Iterable[str], consumers: Iterable[str], operators: tuple[str, ...]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields every producer with every consumer: one node may read several layers' parameters."""
    for producer in producers:
        for consumer in consumers:
            yield producer, consumer, operators


def _paths(
    flow: Sequence[FlowNode], users: Sequence[Sequence[int]], start: int, carriers: set[int], layers: set[int]
) -> dict[int, tuple[str, ...]]:
    """Returns, by node that reads what `start` writes, the operators strictly between, on a shortest path past no layer."""
    between: dict[int, tuple[str, ...]] = {}
    queue: deque[tuple[int, tuple[str, ...]]] = deque([(start, ())])
    while queue:
        position, operators = queue.popleft()
        for user in users[position]:
            if user in between:
                continue
            between[user] = operators
            if user in carriers and user not in layers:
                queue.append((user, (*operators, short_operator(flow[user].operator))))
    return between


def _meeting(
    flow: Sequence[FlowNode], one: Iterable[int], other: Iterable[int], carriers: set[int], layers: set[int]
) -> int | None:
    """Returns the first node where a group cancels out between two layers' outputs, or None."""
    lost = sorted(node for node in set(one) & set(other) if node not in carriers and node not in layers)
    # A slice of a packed q, k, v loses a group without cancelling it: a node that reads it twice comes first.
    twice = (node for node in lost if len(carriers.intersection(flow[node].inputs)) > 1)
    return next(twice, lost[0] if lost else None)

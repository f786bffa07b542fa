"""Graph nodes as the calls that rules get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from functools import cache
from typing import Any

import torch
from torch import fx

from ...field import Equations, ParameterFields, ParameterView, ScaleField
from ...rules import Call, Rule, RuleOptions, find_rule
from ...rules.call import Made
from ..graph.arguments import BoundCall, flat, nodes_in, replaced
from ..graph.facts import GraphFacts

__all__ = ["Calls"]


def _has_values(node: fx.Node) -> bool:
    """Says of no node that its memory is without values."""
    return False


class Calls:
    """Builds the calls of one graph.

    Args:
        facts: the graph's values and sizes.
        parameters, options: handed on to every call.
        active: the nodes that depend on a model input; the owner adds to it as it goes through the graph.
        part_of: by node, the parameter of which it shows entries and nothing else; the owner adds to it too.
        without_values: whether a node's memory was made without values and never written to.
    """

    def __init__(
        self,
        facts: GraphFacts,
        parameters: ParameterFields,
        options: RuleOptions,
        active: Set[fx.Node] = frozenset(),
        part_of: Mapping[fx.Node, str] | None = None,
        without_values: Callable[[fx.Node], bool] = _has_values,
    ) -> None:
        # Each operator is looked up once.
        self._rule = cache(find_rule)
        self._known, self._sizes, self._calls = facts.known, facts.sizes, facts.calls
        self._parameters, self._options = parameters, options
        self._active, self._part_of, self._without_values = active, {} if part_of is None else part_of, without_values

    def of(self, node: fx.Node, arguments: Mapping[str, Any], equations: Equations, origin: int) -> tuple[Rule | None, Call]:
        """Returns the rule of a node, None where there is none, and the call that the rule gets.

        Args:
            node: calls an ATen operator.
            arguments: by schema name, the fields of tensors and the values of all else.
            equations: where the rule may add equations.
            origin: the number of the node in them.
        """
        known = self._calls.of(node)
        bound, nodes = known.arguments, known.nodes
        rule = self._rule(known.operator, known.overload)

        def constants(argument: str, position: int | None) -> torch.Tensor | None:
            source = bound[argument] if position is None else bound[argument][position]
            return self._known.value(source) if isinstance(source, fx.Node) else None

        def numbers(argument: str) -> float | None:
            source = bound[argument]
            return self._known.number(source) if isinstance(source, fx.Node) else None

        return rule, Call(
            operator=known.operator if rule is None else rule.operator.split(".")[0],
            arguments=arguments,
            fakes={key: replaced(value, self._sizes.of) if key in nodes else value for key, value in bound.items()},
            output=self._sizes.of(node),
            equations=equations,
            parameters=self._parameters,
            origin=origin,
            options=self._options,
            constants=constants,
            active={key: key in nodes and not self._active.isdisjoint(nodes[key]) for key in bound},
            unknown=frozenset(key for key, sources in nodes.items() if any(map(self._sizes.unknown, sources))),
            numbers=numbers,
            own=rule is not None and rule.own,
            unwritten=lambda argument: any(map(self._without_values, nodes_in(bound[argument]))),
            weights=dict(self._parts(known, arguments)),
        )

    def _parts(self, call: BoundCall, arguments: Mapping[str, Any]) -> Iterator[tuple[int, Made]]:
        """Gives, by identity, the fields of a call that belong to a parameter or to a part of one."""
        for key, nodes in call.nodes.items():
            if key not in arguments or self._part_of.keys().isdisjoint(nodes):
                continue
            for source, item in zip(flat(call.arguments[key]), flat(arguments[key]), strict=False):
                name = self._part_of.get(source) if isinstance(source, fx.Node) else None
                if name is not None and isinstance(item, (ScaleField, ParameterView)):
                    yield id(item), Made(item, name, source in self._active)

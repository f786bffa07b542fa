"""The answers that are given on request: layers, operators, a check, a balanced checkpoint, a comparison."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...rules import Rule, find_rule, iterate_rules

if TYPE_CHECKING:
    from ...plan.plan import Plan
    from ...verify.verification import Verification

__all__ = ["all_operators", "layers", "operators", "strict_reasons", "verification"]

Json = dict[str, Any]


def layers(plan: Plan, names: Iterable[str]) -> tuple[Json, list[str]]:
    """Returns the answers of `Plan.why` for some layers, as JSON and in lines.

    Raises:
        OptionError: a name means no layer; the message lists the nearest.
    """
    answers = [plan.why(name) for name in names]
    found = {
        "layers": [dataclasses.asdict(layer) for answer in answers for layer in answer.layers],
        "rows": [dataclasses.asdict(row) for answer in answers for row in answer.rows],
    }
    return found, [line for answer in answers for line in str(answer).splitlines()]


def operators(plan: Plan) -> list[Json]:
    """Returns the operators of a model, the commonest first, each with its number of calls and its law.

    Of two modes that mode counts in which an operator is called more often.
    """
    calls: Counter[str] = Counter()
    for nodes in plan.symmetry.flows.values():
        calls |= Counter(node.operator for node in nodes)
    return [_operator(name, count) for name, count in sorted(calls.items(), key=lambda item: (-item[1], item[0]))]


def _operator(name: str, count: int) -> Json:
    """Returns one operator of a graph, with its law."""
    return {"operator": name, "calls": count, **_law(_rule_of(name))}


def _rule_of(operator: str) -> Rule | None:
    """Returns the rule of an operator of a graph, which is named without its namespace, as "relu.default".

    Example:
        >>> rule = _rule_of("relu_.default")
        >>> rule.operator, rule.family
        ('aten::relu', 'homogeneous')
    """
    base, _, overload = operator.partition(".")
    namespaces = dict.fromkeys(["aten", *(rule.operator.partition("::")[0] for rule in iterate_rules())])
    found = (find_rule(f"{namespace}::{base}", overload or "default") for namespace in namespaces)
    return next((rule for rule in found if rule is not None), None)


def all_operators() -> list[Json]:
    """Returns all operators that have a rule, with the law, in alphabetical order."""
    return [{"operator": rule.operator, "calls": None, **_law(rule)} for rule in iterate_rules()]


def _law(rule: Rule | None) -> Json:
    """Returns family and law of a rule, in words."""
    if rule is None:
        return {"family": "barrier", "law": "no scale rule: its inputs are fixed", "rule": False}
    lines = (rule.function.__doc__ or "").strip().splitlines()
    return {"family": rule.family, "law": lines[0] if lines else "", "rule": True}


def verification(found: Verification) -> tuple[Json, list[str]]:
    """Returns the finding of `Plan.verify`, as JSON and in lines."""
    return {
        "unchanged": bool(found),
        "differences": dict(found.differences),
        "tolerances": dict(found.tolerances),
        "at_fault": list(found.at_fault),
        "checked": list(found.checked),
        "unchecked": list(found.unchecked),
        "amplified": dict(found.amplified),
    }, str(found).splitlines()


def strict_reasons(plan: Plan) -> list[str]:
    """Returns why a plan does not pass ``--strict``: operators without a rule, and all that makes it inexact."""
    unknown = dict.fromkeys(barrier.operator for barrier in plan.barriers if not barrier.known)
    return [*(f"{operator} has no scale rule" for operator in unknown), *plan.inexact_reasons]

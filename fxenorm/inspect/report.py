"""The content of ``fxenorm-inspect``'s answer, as one JSON-compatible dict; the tables are made from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..analysis.groups import Group, Port
from ..analysis.held import Held
from ..symmetry.account import ChannelAccount
from ..text.describe import ends_of, layers_that_multiply
from ..version import __version__

if TYPE_CHECKING:
    from ..plan.plan import Plan

__all__ = ["Json", "report"]

Json = dict[str, Any]


def report(plan: Plan, target: str, weights: str = "") -> Json:
    """Returns everything about a plan that the tables or ``--json`` show.

    Args:
        plan: the plan, bound to the model.
        target: how the user named the model.
        weights: where the weights come from, in words; "" where the model's own file knows it.

    Returns:
        Finite numbers, strings, lists and dicts; an imbalance or norm is None where no weight decides it (a dead channel,
        a model on the meta device). Imbalances are natural logarithms: the largest |log(N / P)| / p of the channels.
    """
    symmetry = plan.symmetry
    has_values = not any(tensor.is_meta for tensor in plan.model.state_dict().values())
    held = plan.held if has_values else ()
    imbalances = _group_imbalances(plan, held) if has_values else [None] * len(plan.groups)
    by_group = {group.name: value for group, value in zip(plan.groups, imbalances, strict=True)}
    tensors = dict(plan.model.named_parameters())
    return {
        "fxenorm": __version__,
        "model": target,
        "class": type(plan.model).__name__,
        "weights": weights,
        "options": {field.name: _finite(getattr(plan.options, field.name)) for field in dataclasses.fields(plan.options)},
        "pairs": [{**dataclasses.asdict(pair), "imbalance": by_group[pair.group]} for pair in plan.pairs],
        "groups": [_group(group, plan, imbalance) for group, imbalance in zip(plan.groups, imbalances, strict=True)],
        "barriers": [dataclasses.asdict(barrier) for barrier in plan.barriers],
        "held": [_held(entry) for entry in held],
        "account": None if plan.account is None else _account(plan.account),
        "outputs": [dataclasses.asdict(use) for use in symmetry.outputs],
        "totals": {
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "parameter_tensors": len(tensors),
            "layers": len(layers_that_multiply(symmetry)),
            "groups": len(plan.groups),
            "pairs": len(plan.pairs),
            "free_channels": plan.num_scales,
            "fixed_by_outputs": symmetry.fixed_by_output,
            "fixed_by_barriers": sum(barrier.variables for barrier in plan.barriers),
            "norm": _number(plan.norm()) if has_values else None,
            "imbalance": _number(plan.imbalance()) if has_values else None,
            "exact": plan.exact,
            "inexact_reasons": list(plan.inexact_reasons),
            "modes": list(plan.modes),
            "tracer": plan.tracer,
            "notes": list(symmetry.notes),
        },
    }


def _group(group: Group, plan: Plan, imbalance: float | None) -> Json:
    """Returns one group as JSON: its channels, ends, depth and imbalance."""
    return {
        "name": group.name,
        "kind": group.kind,
        "channels": len(group.variables),
        "variables": [group.variables.start, group.variables.stop],
        "producers": [_port(port) for port in group.producers],
        "consumers": [_port(port) for port in group.consumers],
        "producer_layers": list(ends_of(group, plan.symmetry, "producers")),
        "consumer_layers": list(ends_of(group, plan.symmetry, "consumers")),
        "depth": group.depth,
        "imbalance": imbalance,
    }


def _account(account: ChannelAccount) -> Json:
    """Returns an account of channel ends, node by node."""
    return {name: value for name, value in dataclasses.asdict(account).items() if name != "sides"}


def _port(port: Port) -> Json:
    """Returns one parameter's share in a group as JSON."""
    return dataclasses.asdict(port)


def _group_imbalances(plan: Plan, held: Sequence[Held]) -> list[float | None]:
    """Returns, by group, the largest imbalance of a variable that can move; None where none can."""
    still = {variable for entry in held for variable in entry.variables}
    values = [math.nan if k in still else abs(value) for k, value in enumerate(plan.channel_imbalance().tolist())]
    result: list[float | None] = []
    for group in plan.groups:
        finite = [value for value in values[group.variables.start : group.variables.stop] if math.isfinite(value)]
        result.append(max(finite, default=None))
    return result


def _held(entry: Held) -> Json:
    """Channels that step and balance leave alone, of one group and for one reason."""
    return {**dataclasses.asdict(entry), "channels": entry.count, "variables": list(entry.variables)}


def _number(value: Any) -> float | None:
    """Returns a 0-d tensor as a finite number."""
    number = float(value)
    return number if math.isfinite(number) else None


def _finite(value: Any) -> Any:
    """Returns an option's value; JSON has no infinity."""
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return list(value) if isinstance(value, tuple) else value

"""The content of the page as plain data: numbers before and after balancing, groups, layers, barriers, held channels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...analysis.held import Held
from ...errors import FxenormError
from ...plan.plan import Plan
from ...quantisation.prediction import LayerNoise, Prediction, layer_noises, share_words
from ...rescale.measures.foreseen import Foreseen, foreseen
from ...text.describe import (
    barrier_summaries,
    changed_options,
    counted,
    ends_of,
    layers_that_multiply,
    mode_words,
    output_lines,
    plural,
    tracer_words,
)
from ...text.why import Why

__all__ = ["BarrierRow", "Content", "GroupRow", "HeldRow", "LayerRow", "Rounding", "content_of"]

TOLERANCE, MOST_ITERATIONS = 1e-3, 300
"""The report balances to a thousandth, within as many iterations: nothing is written, and a page is read by eye. Choices."""

_NOTHING = 1e-6
"""Imbalances of the page below this are none: it is the tolerance of `fxenorm.Plan.balance`, and reads better than 4.6e-08."""


@dataclass(frozen=True)
class GroupRow:
    """A group as the page tells it; an imbalance is None where no weight decides it."""

    name: str
    kind: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    between: tuple[str, ...]
    held: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class LayerRow:
    """A layer as the page tells it: its class, the sentences of `Plan.why`, and its norm, None where it is not counted."""

    name: str
    kind: str
    sentences: tuple[str, ...]
    before: float | None
    after: float | None


@dataclass(frozen=True)
class BarrierRow:
    """The barriers of one operator for one reason: (place, number of nodes) in graph order."""

    operator: str
    reason: str
    known: bool
    channels: int
    nodes: int
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class HeldRow:
    """The scales that step and balance leave alone for one reason: (group, number of scales)."""

    reason: str
    scales: int
    groups: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Rounding:
    """The predicted noise of rounding: whether equalisation is worth it, (word, value) of the whole, and the layers."""

    verdict: str
    facts: tuple[tuple[str, str], ...]
    layers: tuple[LayerNoise, ...]


@dataclass(frozen=True)
class Content:
    """Everything on the page but the picture.

    Attributes:
        target, title: how the user named the model, and the name of its class.
        totals: (word, value, remark) of the numbers on top.
        facts: (word, sentence) of the rest of the summary.
        groups, layers, barriers, held: the tables.
        before, after: imbalances of the scales that may move; empty where no weight is known.
        remark: why numbers after balancing are missing, or how balancing ended; "" where there is nothing to say.
        rounding: the predicted noise of rounding, where it was asked for.
    """

    target: str
    title: str
    totals: tuple[tuple[str, str, str], ...]
    facts: tuple[tuple[str, str], ...]
    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]
    barriers: tuple[BarrierRow, ...]
    held: tuple[HeldRow, ...]
    before: tuple[float, ...] = field(default=(), repr=False)
    after: tuple[float, ...] = field(default=(), repr=False)
    remark: str = ""
    rounding: Rounding | None = None


def content_of(plan: Plan, target: str, prediction: Prediction | None = None) -> Content:
    """Collects the content; the weights are read, and stay as they are.

    Args:
        plan: the plan, bound to the model.
        target: how the user named the model.
        prediction: of the noise of rounding; None: there is none.
    """
    has_values = not any(tensor.is_meta for tensor in plan.model.state_dict().values())
    end, remark = _foreseen(plan) if has_values else (None, "The weights are on the meta device, so that no number is known.")
    held = plan.held if has_values else ()
    still = {variable for entry in held for variable in entry.variables}
    moving = [k for k in range(plan.num_scales) if k not in still]
    before, after = ([], []) if end is None else (end.before.tolist(), end.after.tolist())
    kept = [k for k in moving if end is not None and math.isfinite(before[k]) and math.isfinite(after[k])]
    norms = ({}, {}) if end is None else (end.result.layer_norms_before, end.result.layer_norms_after)
    return Content(
        target=target,
        title=type(plan.model).__name__,
        totals=_totals(plan, end),
        facts=_facts(plan, target),
        groups=_groups(plan, held, frozenset(moving), before, after),
        layers=_layers(plan, *norms),
        barriers=_barriers(plan),
        held=_held(held),
        before=tuple(before[k] for k in kept),
        after=tuple(after[k] for k in kept),
        remark=remark,
        rounding=None if prediction is None else _rounding(prediction),
    )


def _rounding(prediction: Prediction) -> Rounding:
    """Returns what the page tells of rounding."""
    facts = (("bits", repr(prediction.bits)), ("now", share_words(prediction.now)), ("optimum", share_words(prediction.best)))
    return Rounding(prediction.verdict, facts, tuple(layer_noises(prediction)))


def _foreseen(plan: Plan) -> tuple[Foreseen | None, str]:
    """Returns the end of balancing, None where it cannot be worked out, with a remark."""
    if not plan.num_scales:
        return None, "No channel can be rescaled, so there is nothing to balance."
    try:
        end = foreseen(plan.rescaler, tol=TOLERANCE, max_iterations=MOST_ITERATIONS)
    except FxenormError as error:
        return None, f"Balancing cannot be foreseen: {error}"
    if not end.result.converged:
        return (
            end,
            f"Balancing was stopped after {end.result.iterations} iterations: plan.balance() goes on until it has converged.",
        )
    return end, ""


def number_words(value: float | None) -> str:
    """Returns a number in four digits, a dash for None."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def imbalance_words(value: float | None) -> str:
    """Returns an imbalance as `number_words` does, and 0 for what a tolerance leaves of it."""
    return "0" if value is not None and abs(value) < _NOTHING else number_words(value)


def _totals(plan: Plan, end: Foreseen | None) -> tuple[tuple[str, str, str], ...]:
    """Returns the numbers on top of the page."""
    ends = plan.account
    free = "" if ends is None else f"{ends.free:,} of {ends.total:,} channel ends are free"
    totals = [
        ("scales", f"{plan.num_scales:,}", free),
        ("groups", f"{len(plan.groups):,}", f"{plural(len(plan.pairs), 'pair')} of layers"),
        ("layers", f"{len(layers_that_multiply(plan.symmetry)):,}", ""),
    ]
    if end is not None:
        result = end.result
        totals += [
            ("norm", f"{number_words(result.norm_before)} → {number_words(result.norm_after)}", "before → after balancing"),
            (
                "imbalance",
                f"{imbalance_words(result.imbalance_before)} → {imbalance_words(result.imbalance_after)}",
                "largest |log(N / P)| / p",
            ),
        ]
    exact = f"{len(plan.inexact_reasons)} reasons below" if plan.inexact_reasons else mode_words(plan.modes)
    return (*totals, ("exact", "yes" if plan.exact else "no", exact))


def _facts(plan: Plan, target: str) -> tuple[tuple[str, str], ...]:
    """Returns the rest of the summary."""
    symmetry, parameters = plan.symmetry, list(plan.model.parameters())
    facts = [
        ("model", f"{target}: {type(plan.model).__name__}"),
        ("parameters", f"{sum(tensor.numel() for tensor in parameters):,} in {plural(len(parameters), 'tensor')}"),
        ("counted", counted(plan.rescaler.analysis.counted, symmetry, plan.options)),
        ("options", changed_options(plan.options)),
        ("traced", f"{tracer_words(plan.tracer)}, in {mode_words(plan.modes)}"),
        *(("not exact", reason) for reason in plan.inexact_reasons),
        *(("outputs", line) for line in output_lines(symmetry.fixed_by_output, symmetry.outputs)),
        *(("channel ends", line.strip()) for line in (() if plan.account is None else plan.account.lines())),
        *(("note", note) for note in symmetry.notes),
    ]
    return tuple(facts)


def _groups(
    plan: Plan, held: Sequence[Held], moving: frozenset[int], before: Sequence[float], after: Sequence[float]
) -> tuple[GroupRow, ...]:
    """Returns the groups."""
    counts: Counter[str] = Counter()
    for entry in held:
        for name in entry.group.split(", "):
            counts[name] += entry.count
    between: dict[str, dict[str, None]] = {}
    for pair in plan.pairs:
        between.setdefault(pair.group, {}).update(dict.fromkeys(pair.operators))
    rows = []
    for group in plan.groups:
        own = [k for k in group.variables if k in moving]
        producers, consumers = (ends_of(group, plan.symmetry, side) for side in ("producers", "consumers"))
        first, last = (_largest([numbers[k] for k in own if numbers]) for numbers in (before, after))
        operators, count = tuple(between.get(group.name, ())), len(group.variables)
        rows.append(GroupRow(group.name, group.kind, count, producers, consumers, operators, counts[group.name], first, last))
    return tuple(rows)


def _known(value: float | None) -> float | None:
    """Returns a number, None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _largest(values: Sequence[float]) -> float | None:
    """Returns the largest of some imbalances, None where none is finite."""
    return max((abs(value) for value in values if math.isfinite(value)), default=None)


def _layers(plan: Plan, before: Mapping[str, float], after: Mapping[str, float]) -> tuple[LayerRow, ...]:
    """Returns the layers, each with the sentences of `Plan.why` about it."""
    told, kinds = plan.why(), {name: type(module).__name__ for name, module in plan.model.named_modules()}
    by_layer: dict[str, list[str]] = {}
    for layer in told.layers:
        rows = tuple(row for row in told.rows if row.layer == layer.layer)
        alone = Why((layer,), rows, told.told)
        by_layer[layer.layer] = alone.describe(expand=True, width=100_000).splitlines()
    names = dict.fromkeys((*layers_that_multiply(plan.symmetry), *by_layer))
    return tuple(
        LayerRow(name, kinds.get(name, ""), tuple(by_layer.get(name, ())), _known(before.get(name)), _known(after.get(name)))
        for name in names
    )


def _barriers(plan: Plan) -> tuple[BarrierRow, ...]:
    """Returns the barriers by operator, those without a rule first."""
    rows = []
    for summary in barrier_summaries(plan.barriers):
        places = Counter(", ".join(filter(None, [one.module, one.source])) or one.node for one in summary.barriers)
        rows.append(
            BarrierRow(
                summary.operator, summary.reason, summary.known, summary.variables, len(summary.barriers), tuple(places.items())
            )
        )
    return tuple(rows)


def _held(held: Sequence[Held]) -> tuple[HeldRow, ...]:
    """Returns what step and balance leave alone, by reason."""
    found: dict[str, dict[str, int]] = {}
    for entry in held:
        groups = found.setdefault(entry.reason, {})
        groups[entry.group] = groups.get(entry.group, 0) + entry.count
    return tuple(HeldRow(reason, sum(groups.values()), tuple(groups.items())) for reason, groups in found.items())

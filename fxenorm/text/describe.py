"""Writes the text of ``print(plan)``, and the wording that ``fxenorm-inspect`` shares with it."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..analysis.analysis import Analysis
from ..analysis.attained.movable import movable
from ..analysis.counted import CountedTensors
from ..analysis.groups import Group, layer_of, layers_of, multiplies
from ..analysis.held import held_by_group
from ..analysis.options import Options
from ..analysis.pairs import short_operator
from ..symmetry.graph.output_ends import CACHE, CONSTANT
from ..symmetry.symmetry import Barrier, OutputUse, Symmetry
from ..trace.outputs import WHOLE
from .repeats import Item, Row, rows_of
from .rows import RELATIVE, channel_words, ends_words, group_words, is_relative
from .table import Column, folded, table_lines, terminal_width

__all__ = [
    "MOST_ROWS",
    "BarrierSummary",
    "Described",
    "barrier_summaries",
    "between",
    "changed_options",
    "counted",
    "describe",
    "described",
    "ends_of",
    "layer_list",
    "layers_that_multiply",
    "mode_words",
    "output_lines",
    "plural",
    "tracer_words",
]

MOST_ROWS = 24
"""Rows of the printed table: as many as a terminal has lines where its size is not known."""

_MOST_LAYERS = 4
_MOST_BARRIERS = 8
_MOST_OUTPUTS = 8
_MANY_ENDS = 8
"""Names in a cell, lines, names in a line, and ends of a channel that are told apart: choices, for plans on two screens."""


def describe(analysis: Analysis, title: str, frozen: frozenset[str], width: int | None = None, *, expand: bool = False) -> str:
    """Puts a plan into words and tables, without reading a weight.

    Args:
        analysis: the findings on the model.
        title: the name of the model's class.
        frozen: names of the parameters that are frozen.
        width: of the text, in characters; None: the terminal's; where there is none, of tables 100, of other lines any.
        expand: whether each group has its own row, and nothing is left out.

    Returns:
        Plain text of several lines.
    """
    width, known = width or shutil.get_terminal_size((100, 24)).columns, width or terminal_width()
    parts = described(analysis, title, frozen, expand=expand)
    table = table_lines(parts.columns, parts.cells, width) if parts.cells else []
    head, under, tail = (
        [text for line in lines for text in folded(line, known)] for lines in (parts.head, parts.under, parts.tail)
    )
    return "\n".join([*head, "", *table, *under, "", *tail])


@dataclasses.dataclass(frozen=True)
class Described:
    """A plan in words, before they are laid out.

    Attributes:
        head: lines about the whole plan.
        columns, cells: the table of the groups, repeated structure in one row; no cells where there are no groups.
        under: lines that belong to the table.
        tail: lines about what is fixed, the account, and notes.
    """

    head: list[str]
    columns: list[Column]
    cells: list[list[str]]
    under: list[str]
    tail: list[str]


def described(analysis: Analysis, title: str, frozen: frozenset[str], *, expand: bool = False) -> Described:
    """Puts a plan into words; the arguments are those of `describe`."""
    symmetry, options, groups = analysis.symmetry, analysis.options, analysis.groups
    head = [
        f"fxenorm plan of {title}: {plural(symmetry.num_scales, 'scale')} in {plural(len(groups), 'group')}, "
        f"{plural(len(layers_that_multiply(symmetry)), 'layer')}, {mode_words(symmetry.modes)}, "
        f"traced {tracer_words(symmetry.tracer)}{_exact_words(symmetry)}",
        *(f"not exact: {reason}" for reason in symmetry.inexact_reasons),
        f"counted: {counted(analysis.counted, symmetry, options)}",
    ]
    changed = changed_options(options)
    if changed:
        head.append(f"options: {changed}")
    offsets = symmetry.offsets
    if offsets:
        numbers = ", ".join(f"{offset:g}" for offset in sorted(set(offsets.values())))
        head.append(f"offsets: {plural(len(offsets), 'tensor')} move as a number plus themselves (plan.offsets): {numbers}")
    tail = _fixed_lines(symmetry, expand)
    if symmetry.account is not None:
        tail += symmetry.account.lines()
    tail += [f"note: {note}" for note in symmetry.notes]
    if not groups:
        return Described(head, [], [], ["no group: every channel is fixed at its scale"], tail)
    return Described(head, *_group_table(analysis, held_counts(analysis, frozen), expand), tail)


def _exact_words(symmetry: Symmetry) -> str:
    """Returns ", exact", and where only the path of some inputs is known, that it is exact there."""
    exact = ", exact" if symmetry.tracer == "export" else ", exact on that path"
    return "" if symmetry.inexact_reasons else exact


def held_counts(analysis: Analysis, frozen: frozenset[str]) -> dict[str, Counter[str]]:
    """Returns, by group, how many channels `step` leaves alone and why: by the graph and the flags, without any weight."""
    counts: dict[str, Counter[str]] = {}
    left = movable(analysis, frozen)
    for item in held_by_group(analysis.groups, left.reasons, analysis.symmetry.num_scales, left.equations, frozen):
        kind = item.reason.partition(":")[0]
        for name in item.group.split(", "):
            counts.setdefault(name, Counter())[f"{kind}{' (in sums)' if item.coefficients else ''}"] += item.count
    return counts


def items_of(analysis: Analysis) -> list[Item]:
    """Returns the groups as the tables see them."""
    pairs = Counter(pair.group for pair in analysis.pairs)
    return [
        Item(
            group.name,
            group.kind,
            len(group.variables),
            ends_of(group, analysis.symmetry, "producers"),
            ends_of(group, analysis.symmetry, "consumers"),
            pairs[group.name],
        )
        for group in analysis.groups
    ]


def _group_table(
    analysis: Analysis, held: Mapping[str, Counter[str]], expand: bool
) -> tuple[list[Column], list[list[str]], list[str]]:
    """Returns the groups as a table, repeated structure in one row, and lines below; held channels have a column if any are."""
    items = items_of(analysis)
    rows = rows_of(items, None if expand else MOST_ROWS)
    shown = rows if expand or len(rows) <= MOST_ROWS else (*rows[: MOST_ROWS - 4], *rows[-3:])
    cells = [
        [
            group_words(row),
            row.members[0].kind,
            channel_words(row),
            ends_words(row, None if expand else _MOST_LAYERS),
            _held_words(row, held),
        ]
        for row in shown
    ]
    if len(shown) < len(rows):
        cells.insert(MOST_ROWS - 4, ["...", "", "", f"and {len(rows) - len(shown)} more rows", ""])
    columns = [Column("group"), Column("kind"), Column("channels", "right"), Column("producers -> consumers", "text")]
    columns.append(Column("held", "text"))
    if not held:
        columns, cells = columns[:-1], [cell[:-1] for cell in cells]
    lines = []
    if any(is_relative(cell[3]) for cell in cells):
        lines.append(f"({RELATIVE})")
    if len(shown) < len(items):
        lines.append(f"({len(items):,} groups, one by one: plan.describe(expand=True), fxenorm-inspect --expand)")
    return columns, cells, lines


def _held_words(row: Row, held: Mapping[str, Counter[str]]) -> str:
    """Returns how many channels of a row's groups are held, and why."""
    counts: Counter[str] = Counter()
    for item in row.members:
        counts.update(held.get(item.name, {}))
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def _fixed_lines(symmetry: Symmetry, expand: bool) -> list[str]:
    """Returns a line for each operator that holds channels outside the groups."""
    lines = output_lines(symmetry.fixed_by_output, symmetry.outputs)
    ends: Counter[str] = Counter()
    for operator, _, count, _ in () if symmetry.account is None else symmetry.account.by_operator("barrier"):
        ends[short_operator(operator)] += count
    summaries = barrier_summaries(symmetry.barriers)
    most = len(summaries) if expand else _MOST_BARRIERS
    for summary in summaries[:most]:
        unknown = "" if summary.known else ", which has no scale rule"
        fixed, places = plural(summary.variables, "channel"), plural(len(summary.barriers), "node")
        # A stream of tied channels is fixed as one.
        tied = ends[summary.operator]
        shared = f", to which {tied:,} channel ends are tied," if tied > _MANY_ENDS * summary.variables > 0 else ""
        lines.append(f"fixed by {summary.operator}{unknown}: {fixed}{shared} at {places}")
    if len(summaries) > most:
        lines.append(f"... and {len(summaries) - most} more operators (plan.describe(expand=True) prints all)")
    return lines


def output_lines(fixed: int, outputs: Sequence[OutputUse]) -> list[str]:
    """Returns the outputs that hold channels, with how many, and those that hold none, in lines."""
    holding: dict[str, int] = {}
    left_out: dict[str, dict[str, None]] = {}
    for use in outputs:
        if use.held and use.variables:
            holding[use.name] = holding.get(use.name, 0) + use.variables
    for use in outputs:
        if not use.held and use.reason != CONSTANT:
            left_out.setdefault(use.reason, {})[use.name] = None
    lines = [f"fixed by the model's outputs: {plural(fixed, 'channel')}"]
    if holding and list(holding) != [WHOLE]:
        lines[0] += f" ({_names([f'{name} {count:,}' for name, count in holding.items()])})"
    if len(holding) > 1:
        lines.append(f"to leave one out, name the others: fxenorm.analyze(..., outputs={next(iter(holding))!r})")
    if CACHE in left_out:
        names = _names(list(left_out.pop(CACHE)))
        lines.append(f'not held: {names}, {CACHE} (fxenorm.analyze(..., outputs="*") holds it too)')
    lines += [f"not held, {reason}: {_names(list(names))}" for reason, names in left_out.items()]
    return lines


def _names(names: Sequence[str]) -> str:
    """Returns names joined by commas, the end of a long list counted."""
    return ", ".join(names[:_MOST_OUTPUTS]) + (f" and {len(names) - _MOST_OUTPUTS} more" if len(names) > _MOST_OUTPUTS else "")


def ends_of(group: Group, symmetry: Symmetry, side: str) -> tuple[str, ...]:
    """Returns the layers on one side of a group; its parameters' own names where no layer multiplies."""
    ports = getattr(group, side)
    return layers_of(ports, symmetry) or tuple(dict.fromkeys(layer_of(port.parameter) for port in ports))


def layers_that_multiply(symmetry: Symmetry) -> tuple[str, ...]:
    """Returns the model's layers: every one with a weight or a gamma, in registration order."""
    return tuple(dict.fromkeys(layer_of(name) for name in symmetry.shapes if multiplies(symmetry, name)))


def plural(count: int, noun: str, ending: str = "s") -> str:
    """Returns a count with its noun, as "1 group" or "2,880 scales"."""
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def mode_words(modes: Sequence[str]) -> str:
    """Returns the modes in words: "eval mode" or "train and eval mode"."""
    return f"{' and '.join(sorted(modes, reverse=True))} mode"


def tracer_words(tracer: str) -> str:
    """Says how the graph was made, as "traced without values" does, and which paths it covers."""
    return "without values" if tracer == "export" else "by make_fx (one path of the example inputs)"


def layer_list(layers: Sequence[str], most: int | None = None) -> str:
    """Returns names joined by commas; more than `most` of them end in a count."""
    if most is None or len(layers) <= most:
        return ", ".join(layers) or "-"
    return f"{', '.join(layers[: most - 1])}, +{len(layers) - most + 1}"


def between(operators: Sequence[str]) -> str:
    """Returns operators joined by commas, repetitions counted: "(add, relu) ×3".

    Example:
        >>> between(["relu", "add", "relu", "add", "relu", "view"])
        '(relu, add) ×2, relu, view'
    """
    words, position = [], 0
    while position < len(operators):
        period, repeats = _repetition(operators, position)
        chunk = ", ".join(operators[position : position + period])
        words.append(chunk if repeats == 1 else f"({chunk}) ×{repeats}" if period > 1 else f"{chunk} ×{repeats}")
        position += period * repeats
    return ", ".join(words)


def _repetition(operators: Sequence[str], start: int) -> tuple[int, int]:
    """Returns (length, times) of the repetition that begins at `start`; (1, 1) where there is none."""
    for period in range(1, min(12, (len(operators) - start) // 2) + 1):
        chunk, repeats = tuple(operators[start : start + period]), 1
        while tuple(operators[start + repeats * period : start + (repeats + 1) * period]) == chunk:
            repeats += 1
        if repeats > 1:
            return period, repeats
    return 1, 1


@dataclasses.dataclass(frozen=True)
class BarrierSummary:
    """Barriers of one operator with one reason.

    Attributes:
        operator: its short name.
        reason: why it holds its inputs.
        known: whether there is a rule for it.
        variables: number of variables that these barriers were the first to hold.
        barriers: the barriers themselves.
    """

    operator: str
    reason: str
    known: bool
    variables: int
    barriers: tuple[Barrier, ...]


def barrier_summaries(barriers: Iterable[Barrier]) -> tuple[BarrierSummary, ...]:
    """Puts barriers together by operator and reason: those without a rule first, then those that hold most."""
    found: dict[tuple[str, str, bool], list[Barrier]] = {}
    for barrier in barriers:
        found.setdefault((short_operator(barrier.operator), barrier.reason, barrier.known), []).append(barrier)
    summaries = (BarrierSummary(*key, sum(b.variables for b in members), tuple(members)) for key, members in found.items())
    return tuple(sorted(summaries, key=lambda summary: (summary.known, -summary.variables)))


def counted(found: CountedTensors, symmetry: Symmetry, options: Options) -> str:
    """Returns the counted parameters in words: weights, normalisations, biases."""
    folded = sum(item.channels is not None for item in found.tensors)
    roles = Counter(symmetry.roles.get(item.parameter, "") for item in found.tensors if item.channels is None)
    weights = plural(roles["weight"] + folded, "weight tensor") + (
        f", {folded:,} of them with a BatchNorm folded in" if folded else ""
    )
    gammas = plural(roles["gamma"], "normalisation weight") if roles["gamma"] else ""
    added = {"count": plural(roles["bias"], "bias", "es"), "scale": "biases follow", "skip": "biases are left alone"}[
        options.biases
    ]
    return "; ".join(filter(None, [weights, gammas, added]))


def changed_options(options: Options) -> str:
    """Returns the options that differ from the defaults, p always."""
    default = Options()
    parts = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == "p" or value != getattr(default, field.name):
            parts.append(f"{field.name}={_option(value)}")
    return ", ".join(parts)


def _option(value: Any) -> str:
    """Returns an option's value as one would type it."""
    if isinstance(value, float):
        return "inf" if math.isinf(value) else f"{value:g}"
    if isinstance(value, dict):
        return f"{{{len(value)} layers}}"
    return repr(value)

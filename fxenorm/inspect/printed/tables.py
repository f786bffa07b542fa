"""A report as tables on a console."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...symmetry.account import AccountRow, ChannelAccount
from ...symmetry.symmetry import Barrier, OutputUse
from ...text.describe import BarrierSummary, barrier_summaries, mode_words, output_lines, plural, tracer_words
from ...text.table import rich_table
from ..report import Json
from ..wording import in_words_of_the_command
from .console import NO_LIMIT
from .operator_table import operator_table
from .pair_table import Table, all_groups, all_pairs, collapsed_pairs, imbalance_words

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["heading", "show", "show_part"]

_TOTALS = "Totals"

_MOST_LINES = 60
"""Lines of the whole answer where nothing is expanded: one screen, scrolled at most once."""

_FEWEST_ROWS = 12
"""The table of pairs has room for these even where the rest is long."""

_MOST_PARTS = 5
"""Operators, reasons, notes and groups in a list; ``--expand`` prints all."""


def show(report: Json, console: Console, *, expand: bool = False, pairs: bool = False) -> None:
    """Prints totals, pairs, groups, barriers and held channels.

    Args:
        report: the answer.
        console: where it goes.
        expand: whether nothing is collapsed or shortened.
        pairs: whether each pair has a row of its own.
    """
    most = None if expand else _MOST_PARTS
    above = [(heading(report), []), (_TOTALS, _totals(report, most))]
    below = [
        (_groups_title(report), [] if expand else _unpaired(report)),
        *_barriers(report, most),
        *_held(report, most),
    ]
    width = console.width if console.is_terminal else None
    used = (
        sum(len(_wrapped(line, width, _indent(title))) for title, lines in above + below for line in lines)
        + 2 * len(above + below)
        + 1
    )
    for number, (title, lines) in enumerate(above):
        _section(console, title, lines, first=number == 0)
    _pairs(report, console, all_pairs(report) if expand or pairs else _collapsed(report, used, width))
    for title, lines in below:
        _section(console, title, lines)
        if expand and title == _groups_title(report) and report["groups"]:
            _print_table(console, all_groups(report))


def heading(report: Json) -> str:
    """Returns the first line of an answer: the model, its class, and where its weights come from."""
    weights = f", {report['weights']}" if report["weights"] else ""
    return f"{report['model']}: {report['class']}{weights}"


def show_part(section: str, report: Json, lines: Sequence[str], console: Console) -> None:
    """Prints one part alone, with nothing left out.

    Args:
        section: its name, as "groups"; others than those of tables are `lines`.
        report: the answer.
        lines: the part where it is no table.
        console: where it goes.
    """
    if section == "groups":
        _section(console, _groups_title(report), [])
        if report["groups"]:
            _print_table(console, all_groups(report))
    elif section == "barriers":
        for title, texts in _barriers(report, None):
            _section(console, title, texts)
    elif section == "operators":
        _print_table(console, operator_table(report["operators"]))
    else:
        width = console.width if console.is_terminal else None
        for line in lines:
            for part in _wrapped(line, width, 8):
                console.print(part, soft_wrap=True)


def _collapsed(report: Json, used: int, width: int | None) -> Table:
    """Returns the collapsed table of pairs, in the lines that the other sections leave."""
    return collapsed_pairs(report, max(_MOST_LINES - used, _FEWEST_ROWS), width)


def _section(console: Console, title: str, lines: Sequence[str], first: bool = False) -> None:
    """Prints a heading, with an empty line before it, and what belongs to it."""
    if not first and title != _TOTALS:
        console.print()
    console.print(title, style="bold cyan", soft_wrap=True)
    width = console.width if console.is_terminal else None
    for line in lines:
        for part in _wrapped(line, width, _indent(title)):
            console.print(part, soft_wrap=True)


def _indent(title: str) -> int:
    """Returns the number of blanks before the second line of what a section says."""
    return 14 if title == _TOTALS else 4


def _wrapped(line: str, width: int | None, indent: int) -> list[str]:
    """Returns a line in lines that fit a terminal, broken at blanks; further ones begin with `indent` blanks."""
    if width is None or len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _print_table(console: Console, table: Table) -> None:
    """Prints a table; without a terminal as lines that do not end in blanks."""
    width = console.width if console.is_terminal else None
    made = rich_table(table.columns, table.rows, width)
    if width is not None:
        console.width = NO_LIMIT  # a name that does not fit is printed whole: rich would cut it
        console.print(made)
        console.width = width
    else:
        with console.capture() as capture:
            console.print(made)
        for line in capture.get().splitlines():
            console.print(line.rstrip(), soft_wrap=True)
    for line in table.below:
        for part in _wrapped(line, width, 1):
            console.print(part, style="dim", soft_wrap=True)


def _pairs(report: Json, console: Console, table: Table) -> None:
    """Prints the pairs."""
    count = len(report["pairs"])
    _section(console, f"Pairs: {count:,}" if count else "Pairs: none", [])
    if count:
        _print_table(console, table)


def _groups_title(report: Json) -> str:
    """Returns how many groups there are, with how many scales, and of which kinds."""
    groups = report["groups"]
    if not groups:
        return "Groups: none, no channel can be rescaled"
    kinds = Counter(group["kind"] for group in groups).most_common()
    words = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    return f"Groups: {len(groups):,} with {plural(report['totals']['free_channels'], 'free scale')} ({words})"


def _unpaired(report: Json) -> list[str]:
    """Returns the groups without a pair, which the table of pairs does not show, in a line."""
    paired = {pair["group"] for pair in report["pairs"]}
    alone = [group for group in report["groups"] if group["name"] not in paired]
    if not alone:
        return []
    names = [f"{group['name']} ({', '.join([*group['producer_layers'], *group['consumer_layers']])})" for group in alone]
    return [f"  without a pair: {_some(names, _MOST_PARTS, ', ')}"]


def _some(names: Sequence[str], most: int | None, joint: str) -> str:
    """Returns names joined, the end of a long list counted."""
    if most is None or len(names) <= most:
        return joint.join(names)
    return f"{joint.join(names[:most])} and {len(names) - most:,} more"


def _barriers(report: Json, most: int | None) -> list[tuple[str, list[str]]]:
    """Returns the operators that hold the other channels, with their places."""
    summaries = barrier_summaries(Barrier(**values) for values in report["barriers"])
    fixed = report["totals"]["fixed_by_barriers"]
    lines = [line for summary in summaries[:most] for line in _barrier(summary, most)]
    if most is not None and len(summaries) > most:
        lines.append(f"  ... and {plural(len(summaries) - most, 'operator')} more (--expand lists all)")
    return [(f"Barriers: {plural(fixed, 'channel')} fixed" if summaries else "Barriers: none", lines)]


def _barrier(summary: BarrierSummary, most: int | None) -> list[str]:
    """Returns one operator: in one line with its first place, or all its places below it."""
    places = list(dict.fromkeys(_place(barrier) for barrier in summary.barriers))
    why = summary.reason if summary.known else f"no scale rule: {summary.reason}"
    counts = f"{plural(summary.variables, 'channel')} at {plural(len(summary.barriers), 'node')}"
    if most is None:
        return [f"  {summary.operator} ({counts}): {why}", *(f"    {place}" for place in places)]
    more = f", {len(places) - 1:,} more" if len(places) > 1 else ""
    return [f"  {summary.operator} ({counts}): {why} ({places[0].partition(', in ')[0]}{more})"]


def _place(barrier: Barrier) -> str:
    """Module and source line of a barrier."""
    return ", ".join(filter(None, [barrier.module, barrier.source])) or barrier.node


def _held(report: Json, most: int | None) -> list[tuple[str, list[str]]]:
    """Returns the channels that are free but that step and balance leave alone, by reason."""
    held = report["held"]
    if not held:
        return []
    by_reason: dict[str, list[Json]] = {}
    for entry in held:
        by_reason.setdefault(entry["reason"], []).append(entry)
    lines = []
    for reason, entries in by_reason.items():
        groups = _some([f"{entry['group']} ({entry['channels']:,})" for entry in entries], most, ", ")
        lines.append(f"  {plural(sum(entry['channels'] for entry in entries), 'channel')}: {reason}: {groups}")
    if most is not None and len(lines) > most:
        lines = [*lines[:most], f"  ... and {plural(len(lines) - most, 'reason')} more (--expand lists all)"]
    total = plural(sum(entry["channels"] for entry in held), "channel")
    return [(f"Free but left alone by step and balance: {total}", lines)]


def _totals(report: Json, most: int | None) -> list[str]:
    """Returns the numbers of the whole model in lines."""
    totals = report["totals"]
    options = report["options"]
    outputs = output_lines(totals["fixed_by_outputs"], [OutputUse(**values) for values in report["outputs"]])
    exact = "yes" if totals["exact"] else "no"
    plain = output_lines(totals["fixed_by_outputs"], [])[0]  # says no more than the line of the channels
    taken = f"p = {_option(options['p'])}, batchnorm {options['batchnorm']}, biases {options['biases']}"
    lines: list[tuple[str, str]] = [
        (
            "parameters",
            f"{totals['parameters']:,} in {plural(totals['parameter_tensors'], 'tensor')}, {plural(totals['layers'], 'layer')}",
        ),
        (
            "channels",
            f"{totals['free_channels']:,} free, {totals['fixed_by_outputs']:,} fixed by the outputs, "
            f"{totals['fixed_by_barriers']:,} fixed by barriers",
        ),
        *(("ends", text.removeprefix("Channel ends ").strip()) for text in _account_lines(report["account"], most)),
        *(("outputs", in_words_of_the_command(text)) for text in outputs if text != plain),
        (
            "norm",
            f"{_value(totals['norm'])} ({taken})",
        ),
        ("imbalance", f"{imbalance_words(totals['imbalance'])} (the largest |log(N / P)| / p of a channel; 0 is balanced)"),
        ("exact", f"{exact}, in {mode_words(totals['modes'])}, traced {tracer_words(totals['tracer'])}"),
        *(("not exact", reason) for reason in totals["inexact_reasons"]),
        *(("note", note) for note in totals["notes"][:most]),
    ]
    if most is not None and len(totals["notes"]) > most:
        lines.append(("note", f"and {len(totals['notes']) - most} more (--expand lists all)"))
    return [f"  {name:<10}  {text}" for name, text in lines]


def _account_lines(stored: Json | None, most: int | None) -> list[str]:
    """Returns the account of the channel ends in words; by operator where nothing is left out."""
    if stored is None:
        return []
    lines = ChannelAccount(**{**stored, "rows": tuple(AccountRow(**row) for row in stored["rows"])}).lines()
    return lines if most is None else lines[:1]


def _value(value: float | None) -> str:
    """Returns a norm in words, a dash for None."""
    return "-" if value is None else f"{value:.6g}"


def _option(value: Any) -> str:
    """Returns an option's number in its shortest form."""
    return f"{value:g}" if isinstance(value, float) else str(value)

"""A report as tables on a console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from ..symmetry.account import AccountRow, ChannelAccount
from ..symmetry.symmetry import Barrier, OutputUse
from ..text.describe import barrier_summaries, between, layer_list, mode_words, output_lines, plural, tracer_words
from ..text.table import Column, rich_table
from .report import Json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["make_console", "show"]

_MOST_PLACES = 3
"""Places of a barrier that are listed: a barrier often stands in every block of a model, and --json lists all."""


def make_console(stream: TextIO) -> Console:
    """Returns a console for a stream: as wide as the terminal, without colours and limits where the output goes to a file."""
    from rich.console import Console

    if stream.isatty():
        return Console(file=stream, highlight=False, emoji=False, markup=False)
    return Console(file=stream, width=100_000, color_system=None, highlight=False, emoji=False, markup=False)


def show(report: Json, console: Console) -> None:
    """Prints pairs, groups, barriers, held channels and totals."""
    width = console.width if console.is_terminal else None
    _title(console, f"{report['model']}: {report['class']}", first=True)
    _pairs(report, console, width)
    _groups(report, console, width)
    _barriers(report, console)
    _held(report, console, width)
    _totals(report, console)


def _title(console: Console, text: str, first: bool = False) -> None:
    """Prints a heading, with an empty line before it."""
    if not first:
        console.print()
    console.print(text, style="bold cyan", soft_wrap=True)


def _print_table(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> None:
    """Prints a table; without a terminal as lines that do not end in blanks."""
    table = rich_table(columns, rows, width)
    if console.is_terminal:
        console.print(table, soft_wrap=True)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def _pairs(report: Json, console: Console, width: int | None) -> None:
    """Prints the pairs: the producer hands its output's scale to the consumer."""
    pairs = report["pairs"]
    _title(console, f"Pairs: {len(pairs):,}" if pairs else "Pairs: none")
    if not pairs:
        return
    columns = [
        Column("producer", "text"),
        Column("consumer", "text"),
        Column("channels", "right", "green"),
        Column("group", "", "cyan"),
        Column("imbalance", "right", "yellow"),
        Column("between", "text", "dim"),
    ]
    rows = [
        [
            pair["producer"],
            pair["consumer"],
            f"{pair['channels']:,}",
            pair["group"],
            _imbalance(pair["imbalance"]),
            between(pair["operators"]),
        ]
        for pair in pairs
    ]
    _print_table(console, columns, rows, width)


def _groups(report: Json, console: Console, width: int | None) -> None:
    """Prints the groups of channels that can be scaled freely."""
    groups = report["groups"]
    free = plural(report["totals"]["free_channels"], "free scale")
    _title(console, f"Groups: {len(groups):,} with {free}" if groups else "Groups: none, no channel can be rescaled")
    if not groups:
        return
    columns = [
        Column("group", "", "cyan"),
        Column("kind"),
        Column("channels", "right", "green"),
        Column("imbalance", "right", "yellow"),
        Column("producers", "text"),
        Column("consumers", "text"),
    ]
    rows = [
        [
            group["name"],
            group["kind"],
            f"{group['channels']:,}",
            _imbalance(group["imbalance"]),
            layer_list(group["producer_layers"]),
            layer_list(group["consumer_layers"]),
        ]
        for group in groups
    ]
    _print_table(console, columns, rows, width)


def _barriers(report: Json, console: Console) -> None:
    """Prints the operators that hold the other channels, with their places."""
    from rich.text import Text

    summaries = barrier_summaries(Barrier(**values) for values in report["barriers"])
    held = report["totals"]["fixed_by_barriers"]
    _title(console, f"Barriers: {plural(held, 'channel')} held" if summaries else "Barriers: none")
    for summary in summaries:
        places = list(dict.fromkeys(_place(barrier) for barrier in summary.barriers))
        why = summary.reason if summary.known else f"no scale rule: {summary.reason}"
        counts = f"{plural(summary.variables, 'channel')} at {plural(len(summary.barriers), 'node')}"
        console.print(Text.assemble("  ", (summary.operator, "bold red"), f" ({counts}): {why}"), soft_wrap=True)
        for place in places[:_MOST_PLACES]:
            console.print(f"    {place}", style="dim", soft_wrap=True)
        if len(places) > _MOST_PLACES:
            console.print(f"    and {len(places) - _MOST_PLACES} more (--json lists all)", style="dim", soft_wrap=True)


def _place(barrier: Barrier) -> str:
    """Module and source line of a barrier."""
    return ", ".join(filter(None, [barrier.module, barrier.source])) or barrier.node


def _held(report: Json, console: Console, width: int | None) -> None:
    """Prints the channels that are free but that step and balance leave alone."""
    held = report["held"]
    if not held:
        return
    _title(console, f"Free but left alone by step and balance: {plural(sum(entry['channels'] for entry in held), 'channel')}")
    by_reason: dict[str, list[Json]] = {}
    for entry in held:
        by_reason.setdefault(entry["reason"], []).append(entry)
    columns = [Column("channels", "right", "green"), Column("why", "text"), Column("groups", "text", "cyan")]
    rows = [
        [
            f"{sum(entry['channels'] for entry in entries):,}",
            reason,
            ", ".join(f"{entry['group']} ({entry['channels']:,})" for entry in entries),
        ]
        for reason, entries in by_reason.items()
    ]
    _print_table(console, columns, rows, width)


def _totals(report: Json, console: Console) -> None:
    """Prints the numbers of the whole model."""
    totals = report["totals"]
    options = report["options"]
    uses = [OutputUse(**values) for values in report["outputs"]]
    taken = f"p = {_option(options['p'])}, batchnorm {options['batchnorm']}, biases {options['biases']}"
    _title(console, "Totals")
    lines: list[tuple[str, str]] = [
        (
            "parameters",
            f"{totals['parameters']:,} in {plural(totals['parameter_tensors'], 'tensor')}, {plural(totals['layers'], 'layer')}",
        ),
        (
            "channels",
            f"{totals['free_channels']:,} free, {totals['fixed_by_outputs']:,} held by the outputs, "
            f"{totals['fixed_by_barriers']:,} held by barriers",
        ),
        *(("ends", text.removeprefix("Channel ends ").strip()) for text in _account_lines(report["account"])),
        *(("outputs", text) for text in output_lines(totals["fixed_by_outputs"], uses)),
        (
            "norm",
            f"{_value(totals['norm'])} ({taken})",
        ),
        ("imbalance", f"{_imbalance(totals['imbalance'])} (the largest |log(N / P)| / p of a channel; 0 is balanced)"),
        ("exact", "yes" if totals["exact"] else f"no: {'; '.join(totals['inexact_reasons'])}"),
        ("holds in", mode_words(totals["modes"])),
        ("traced by", tracer_words(totals["tracer"])),
        *(("note", note) for note in totals["notes"]),
    ]
    for name, text in lines:
        console.print(f"  {name:<10}  {text}", soft_wrap=True)


def _account_lines(stored: Json | None) -> list[str]:
    """Returns the account of the channel ends in words."""
    if stored is None:
        return []
    return ChannelAccount(**{**stored, "rows": tuple(AccountRow(**row) for row in stored["rows"])}).lines()


def _imbalance(value: float | None) -> str:
    """Returns an imbalance with a sensible number of digits."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 5e-4 or value == 0 else f"{value:.0e}"


def _value(value: float | None) -> str:
    """Returns a norm in words, a dash for None."""
    return "-" if value is None else f"{value:.6g}"


def _option(value: Any) -> str:
    """Returns an option's number in its shortest form."""
    return f"{value:g}" if isinstance(value, float) else str(value)

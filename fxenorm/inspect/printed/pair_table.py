"""The pairs of a report as tables: repeated structure in one row, or one pair a row."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...text.describe import MOST_ROWS, between, plural
from ...text.repeats import Item, Row, rows_of
from ...text.rows import RELATIVE, channel_words, ends_words, group_words, is_relative, operator_words
from ...text.table import Column, fitting, table_heights
from ..report import Json

__all__ = ["Table", "all_groups", "all_pairs", "collapsed_pairs", "imbalance_words"]

_MOST_LAYERS = 6
"""Names on each side of a row; ``--expand`` prints all."""


_BELOW = 3
"""Lines below the table at most, on a terminal of 80 columns."""


@dataclass(frozen=True)
class Table:
    """Columns, rows, and lines that stand below them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    below: Sequence[str] = ()


def collapsed_pairs(report: Json, lines: int, width: int | None) -> Table:
    """Returns the pairs, a row for each group or set of equal groups.

    Args:
        report: the whole report.
        lines: number of lines that the table may take, those below it included.
        width: of the terminal; None: no limit.
    """
    paths, imbalances = defaultdict(list), {}
    for pair in report["pairs"]:
        paths[pair["group"]].append(tuple(pair["operators"]))
        imbalances[pair["group"]] = pair["imbalance"]
    items = [_item(group, len(paths[group["name"]])) for group in report["groups"] if group["name"] in paths]

    def cells(row: Row) -> list[str]:
        """Returns one row of the table."""
        operators = [path for item in row.members for path in paths[item.name]]
        known = [value for item in row.members if (value := imbalances[item.name]) is not None]
        return [
            ends_words(row, _MOST_LAYERS),
            f"{row.pairs:,}",
            channel_words(row),
            imbalance_words(max(known, default=None)),
            group_words(row),
            row.members[0].kind,
            between(operators[0]) if len(set(operators)) == 1 else operator_words(operators, _MOST_LAYERS),
        ]

    columns = [
        Column("producers -> consumers", "text"),
        Column("pairs", "right", spare=3),
        Column("channels", "right", "green"),
        Column("imbalance", "right", "yellow"),
        Column("group", "", "cyan", spare=1),
        Column("kind", spare=2),
        Column("between", "text", "dim", spare=4),
    ]
    return _within(columns, items, cells, lines, width)


def _item(group: Json, pairs: int) -> Item:
    """Returns a group of a report as the tables see it."""
    ends = tuple(group["producer_layers"]), tuple(group["consumer_layers"])
    return Item(group["name"], group["kind"], group["channels"], *ends, pairs)


def _within(
    columns: Sequence[Column], items: Sequence[Item], cells: Callable[[Row], list[str]], lines: int, width: int | None
) -> Table:
    """Returns the table of the items, collapsed as far as the lines ask for, its end counted where they are still too few."""
    room = lines - _BELOW
    for most in (min(room, MOST_ROWS), room // 2, room // 4):
        rows = rows_of(items, max(most, 1))
        kept, texts, left_out = fitting(columns, [cells(row) for row in rows], width)
        heading, *heights = table_heights(kept, texts, width)
        if heading + sum(heights) <= room:
            break
    said = [RELATIVE] if any(is_relative(text[0]) for text in texts) else []
    if left_out:
        said.append(f"No room for: {', '.join(left_out)}.")
    if len(rows) < len(items):
        said.append("--expand prints every pair and group.")
    below = [f"({' '.join(said)})"] if said else []
    if heading + sum(heights) > room:
        ends = itertools.accumulate(heights, initial=heading)
        shown = max(1, sum(end <= room for end in ends) - 1)
        left = sum(row.pairs for row in rows[shown:])
        texts = texts[:shown]
        below.insert(0, f"... and {len(rows) - shown:,} more rows, of {plural(left, 'pair')} (--expand prints all)")
    return Table(kept, texts, below)


def all_pairs(report: Json) -> Table:
    """Returns all pairs, each in a row of its own: the producer hands its output's scale to the consumer."""
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
            imbalance_words(pair["imbalance"]),
            between(pair["operators"]),
        ]
        for pair in report["pairs"]
    ]
    return Table(columns, rows)


def all_groups(report: Json) -> Table:
    """Returns all groups, each in a row of its own, with all their layers."""
    columns = [
        Column("group", "", "cyan"),
        Column("kind"),
        Column("channels", "right", "green"),
        Column("imbalance", "right", "yellow"),
        Column("producers -> consumers", "text"),
    ]
    rows = [
        [
            group["name"],
            group["kind"],
            f"{group['channels']:,}",
            imbalance_words(group["imbalance"]),
            ends_words(row, None),
        ]
        for group, row in zip(report["groups"], rows_of([_item(group, 0) for group in report["groups"]]), strict=True)
    ]
    return Table(columns, rows)


def imbalance_words(value: float | None) -> str:
    """Returns an imbalance with a sensible number of digits."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 5e-4 or value == 0 else f"{value:.0e}"

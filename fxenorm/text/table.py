"""Makes tables whose long names are broken where a reader would break them, never cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Column", "rich_table", "table_lines"]

_LINES = "    \n    \n -- \n    \n    \n    \n    \n    \n"
"""Rich's description of a box that only underlines the headings, in ASCII: the text may go anywhere."""


@dataclass(frozen=True)
class Column:
    """A column: its heading; "right" aligns numbers, "text" may be broken to fit the width; a rich style for terminals."""

    heading: str
    kind: Literal["", "right", "text"] = ""
    style: str = ""


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> Table:
    """Returns rows as a rich table.

    Args:
        columns: their headings and kinds.
        rows: the cells, one string for each column.
        width: of the whole table, in characters; None: as wide as it needs to be.

    Returns:
        The table; it fits `width` if the columns that cannot be broken leave room for it.
    """
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    limits = _limits(columns, rows, width)
    grid = Table(
        box=Box(_LINES, ascii=True),
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        header_style="bold",
        border_style="dim",
    )
    for column in columns:
        grid.add_column(column.heading, justify="right" if column.kind == "right" else "left", style=column.style, no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(broken(cell, limit)) for cell, limit in zip(row, limits, strict=True)))
    return grid


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Returns the table of `rich_table` as lines of plain text without trailing blanks."""
    from rich.console import Console

    console = Console(width=100_000, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(rich_table(columns, rows, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def _limits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Returns the columns' widths: those that may be broken share what the others leave, the narrow ones first."""
    natural = [max([len(column.heading), *(len(row[k]) for row in rows)]) for k, column in enumerate(columns)]
    elastic = [k for k, column in enumerate(columns) if column.kind == "text"]
    if width is None or not elastic:
        return natural
    left = width - 2 * (len(columns) - 1) - sum(size for k, size in enumerate(natural) if k not in elastic)
    limits = list(natural)
    for done, k in enumerate(sorted(elastic, key=lambda k: natural[k])):
        limits[k] = min(natural[k], max(12, left // (len(elastic) - done)))
        left -= limits[k]
    return limits


def broken(cell: str, limit: int) -> str:
    """Breaks `cell` into lines of at most `limit` characters, at blanks, else behind dots, slashes or underscores."""
    lines, line = [], ""
    for word in cell.split(" "):
        for piece, joint in _pieces(word, limit):
            if line and len(line) + len(joint) + len(piece) > limit:
                lines.append(line)
                line = piece
            else:
                line += (joint if line else "") + piece
    return "\n".join([*lines, line])


def _pieces(word: str, limit: int) -> Iterable[tuple[str, str]]:
    """Yields the pieces of a word, each with the joint to the piece before."""
    if len(word) <= limit:
        yield word, " "
        return
    for index, part in enumerate(re.findall(r"[^./_]*[./_]|[^./_]+", word)):
        for start in range(0, len(part), limit):
            yield part[start : start + limit], " " if index == 0 and start == 0 else ""

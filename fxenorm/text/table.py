"""Makes tables whose long cells are broken at blanks; names are never broken inside, and never cut."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["TOGETHER", "Column", "broken", "fitting", "folded", "rich_table", "table_heights", "table_lines", "terminal_width"]

TOGETHER = "\N{NO-BREAK SPACE}"
"""A blank in a cell at which no line is broken; a plain blank is printed."""

_LINES = "    \n    \n -- \n    \n    \n    \n    \n    \n"
"""Rich's description of a box that only underlines the headings, in ASCII: the text may go anywhere."""


_STEP = 2
"""Characters between two widths that are tried for a column: a choice."""

_SHORTER = 0.9
"""A spare column is worth a tenth more lines: a choice."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its name.
        kind: "right" aligns numbers; "text" may be broken at blanks to fit the width.
        style: a rich style for terminals.
        spare: where the table is wider than the terminal, columns are left out, the largest of these numbers first; 0: never.
    """

    heading: str
    kind: Literal["", "right", "text"] = ""
    style: str = ""
    spare: int = 0


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> Table:
    """Returns rows as a rich table.

    Args:
        columns: their headings and kinds.
        rows: the cells, one string for each column.
        width: of the whole table, in characters; None: as wide as it needs to be.

    Returns:
        The table; it fits `width` if the words and the columns that cannot be broken leave room for it.
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

    # Told that it is no notebook, where rich would show what is captured here as an empty block.
    console = Console(width=100_000, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(rich_table(columns, rows, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> tuple[list[Column], list[list[str]], list[str]]:
    """Leaves out spare columns while the table is too wide, or a tenth longer than without.

    Returns:
        The columns, the rows, and the headings that are left out.
    """
    kept = list(range(len(columns)))

    def size(chosen: Sequence[int]) -> tuple[bool, int]:
        """Returns whether the table with these columns is too wide, and its lines."""
        some, texts = [columns[k] for k in chosen], [[row[k] for k in chosen] for row in rows]
        limits = _limits(some, texts, width)
        return width is not None and _total(limits) > width, sum(_heights(texts, limits))

    for spare in sorted((k for k in kept if columns[k].spare), key=lambda k: -columns[k].spare):
        without = [k for k in kept if k != spare]
        too_wide, height = size(kept)
        if too_wide or size(without)[1] <= _SHORTER * height:
            kept = without
    left_out = [column.heading for k, column in enumerate(columns) if k not in kept]
    return [columns[k] for k in kept], [[row[k] for k in kept] for row in rows], left_out


def table_heights(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Returns the lines that `rich_table` takes on a terminal of this width: those of the heading, then those of each row."""
    limits = _limits(columns, rows, width)
    wraps = 1 if width is None else -(-_total(limits) // width)
    return [height * wraps for height in (2, *_heights(rows, limits))]


def _total(limits: Sequence[int]) -> int:
    """Returns the width of a table."""
    return sum(limits) + 2 * (len(limits) - 1)


def _limits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Returns the columns' widths: those that may be broken share what the others leave, none narrower than its words."""
    natural = [max([len(column.heading), *(len(row[k]) for row in rows)]) for k, column in enumerate(columns)]
    elastic = [k for k, column in enumerate(columns) if column.kind == "text"]
    if width is None or not elastic:
        return natural
    least = {k: max([len(columns[k].heading), *(len(word) + 2 for row in rows for word in row[k].split(" "))]) for k in elastic}
    least = {k: min(size, natural[k]) for k, size in least.items()}
    left = width - 2 * (len(columns) - 1) - sum(size for k, size in enumerate(natural) if k not in elastic)
    if len(elastic) == 2:
        return min(_splits(natural, least, left), key=lambda limits: sum(_heights(rows, limits)))
    limits, order = list(natural), sorted(elastic, key=lambda k: natural[k])
    for done, k in enumerate(order):
        room = min(left // (len(order) - done), left - sum(least[later] for later in order[done + 1 :]))
        limits[k] = min(natural[k], max(least[k], room))
        left -= limits[k]
    return limits


def _splits(natural: Sequence[int], least: Mapping[int, int], left: int) -> Iterator[list[int]]:
    """Yields widths in which two columns share what is left."""
    one, two = least
    for size in range(least[one], max(least[one], min(natural[one], left - least[two])) + 1, _STEP):
        limits = list(natural)
        limits[one], limits[two] = size, min(natural[two], max(least[two], left - size))
        yield limits


def _heights(rows: Sequence[Sequence[str]], limits: Sequence[int]) -> list[int]:
    """Returns the number of lines of each row."""
    return [max(broken(cell, limit).count("\n") + 1 for cell, limit in zip(row, limits, strict=True)) for row in rows]


def broken(cell: str, limit: int) -> str:
    """Breaks `cell` at blanks into lines of at most `limit` characters, longer where one word is; further lines are indented."""
    lines = [""]
    for word in cell.split(" "):
        line = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1].strip() and len(line) > limit:
            lines.append(f"  {word}")
        else:
            lines[-1] = line
    return "\n".join(lines).replace(TOGETHER, " ")


def terminal_width() -> int:
    """Returns the characters in a line of the terminal to which standard output goes; 0 where it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else 0


def folded(line: str, width: int) -> list[str]:
    """Returns a line as lines of at most `width` characters, broken at blanks as `broken` does; as it is where `width` is 0."""
    text = line.lstrip(" ")
    indent = line[: len(line) - len(text)]
    return [indent + part for part in broken(text, width - len(indent)).split("\n")] if width else [line]

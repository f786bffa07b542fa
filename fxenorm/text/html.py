"""Puts what is printed into HTML for notebooks: the same words, in tables; every name is escaped, nothing is loaded."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from ..analysis.analysis import Analysis
from .describe import described
from .table import TOGETHER, Column

__all__ = ["html_block", "html_table", "plan_html"]

_TABLE = "border-collapse:collapse;font-size:0.9em"
_CELL = "padding:0.15em 0.8em 0.15em 0;vertical-align:top"
"""Styles that take the colours and the font of the page, so that dark pages stay dark."""


def html_table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    """Returns a table.

    Args:
        columns: their headings; "right" aligns numbers, and lines are broken in "text" alone.
        cells: plain text, one string for each column.

    Example:
        >>> html_table([Column("name")], [["a < b"]]).count("a &lt; b")
        1
    """
    head = "".join(f'<th style="{_style(column)}">{_text(column.heading)}</th>' for column in columns)
    rows = "".join(
        "<tr>"
        + "".join(f'<td style="{_style(column)}">{_text(cell)}</td>' for column, cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in cells
    )
    return (
        f'<div style="overflow-x:auto"><table style="{_TABLE}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def html_block(title: str, parts: Iterable[str | Sequence[str]]) -> str:
    """Returns a heading, and below it tables and lines.

    Args:
        title: plain text.
        parts: HTML as `html_table` returns it, or a list of lines of plain text.
    """
    inside = "".join(part if isinstance(part, str) else "".join(f"<div>{_text(line)}</div>" for line in part) for part in parts)
    return f'<div class="fxenorm"><div><b>{_text(title)}</b></div>{inside}</div>'


def plan_html(analysis: Analysis, title: str, frozen: frozenset[str]) -> str:
    """Returns what `describe` prints of a plan, repeated structure in one row."""
    parts = described(analysis, title, frozen)
    table = html_table(parts.columns, parts.cells) if parts.cells else ""
    return html_block(parts.head[0], [parts.head[1:], table, parts.under, parts.tail])


def _style(column: Column) -> str:
    """Returns the style of a column's cells."""
    return f"{_CELL};text-align:{'right' if column.kind == 'right' else 'left'}" + (
        "" if column.kind == "text" else ";white-space:nowrap"
    )


def _text(text: str) -> str:
    """Returns plain text as HTML, its lines apart."""
    return html.escape(text.replace(TOGETHER, " ")).replace("\n", "<br>")

"""The table of a study, for a terminal and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .statistics import spread
from .summary import Row, noise

HEAD = ("start", "arm", "rate", "usable rates", "score", "train loss", "steps", "lost", "score − first", "loss − first")
WITHIN = 1.0
"""Points of validation accuracy within which a rate is usable."""


def within_of(row: Row) -> float:
    """Points within which a rate is usable: for an auto-encoder, whose score is minus a mean square error, hundredths."""
    return WITHIN / 100 if row.cell.base.experiment == "autoencoder" else WITHIN


def cells_of(row: Row) -> list[str]:
    """The texts of a row."""
    digits = 3 if row.cell.base.experiment == "autoencoder" else 1
    steps = [result["steps"] for result in row.results if result["steps"] is not None]
    losses = [result["train_loss"] for result in row.results if result["train_loss"] is not None]
    usable = ""
    if row.tuning is not None:
        low, high = row.tuning.usable(within_of(row))
        usable = f"{low:g} to {high:g} (×{high / low:g})"
    return [
        row.start,
        row.method.name,
        f"{row.rate:g}{'*' if row.at_edge else ''}",
        usable,
        spread([result["score"] for result in row.results], digits),
        spread(losses, 3),
        f"{statistics.fmean(steps):.0f} ({len(steps)})" if steps else "never",
        f"{row.diverged} of {len(row.results)}",
        row.score.text(digits + 1 if digits == 1 else digits) if row.score is not None else "",
        row.loss.text(3) if row.loss is not None else "",
    ]


def noise_text(rows: Sequence[Row]) -> str:
    """The A/A row: how far the arms that train one network are apart."""
    value = noise(rows)
    if value is None:
        return "A/A: only one arm trains the balanced network here"
    same = [row for row in rows if row.is_the_balanced_network]
    digits = 3 if same[0].cell.base.experiment == "autoencoder" else 1
    means = ", ".join(f"{row.mean:.{digits}f}" for row in same)
    return f"A/A: one network, {len(same)} times: {means}; spread {value:.{digits}f}. No smaller difference is a finding"


def rich_table(rows: Sequence[Row]) -> Table:
    """The table of one section."""
    cell = rows[0].cell
    title = f"{cell.title.replace(f', start {cell.base.start}', '')}; seeds: {len(cell.reporting)}"
    table = Table(title=title, caption=f"{noise_text(rows)}.", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=number == 1)
    last = rows[0].cell
    for row in rows:
        if row.cell is not last:
            table.add_section()
            last = row.cell
        table.add_row(*cells_of(row))
    return table


def markdown(section_rows: Sequence[Sequence[Row]]) -> str:
    """All sections as one Markdown text."""
    parts = []
    for rows in section_rows:
        cell = rows[0].cell
        title = f"{cell.title.replace(f', start {cell.base.start}', '')}; seeds: {len(cell.reporting)}"
        lines = [f"**{title}**", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
        lines += [f"| {' | '.join(cells_of(row))} |" for row in rows]
        parts.append("\n".join([*lines, "", f"{noise_text(rows)}.", ""]))
    return "\n".join(parts)


LEGEND = (
    "score: test accuracy in % (auto-encoder: minus the mean square error), mean ± standard deviation over the seeds. "
    "train loss: mean of the last 100 steps. "
    "steps: mean number until the running mean of the training loss was below 0.5 (number of runs). "
    "usable rates: within 1 point of the arm's best validation accuracy. lost: runs that diverged. "
    "Differences are paired by seed, with 95 % intervals. *: the best rate is at the edge of the rates tried."
)

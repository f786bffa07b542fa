"""The pictures: validation accuracy against learning rate, learning curves, norms and imbalances over time."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..configuration import StudyError
from ..protocol import Cell
from .summary import Row

Styles = dict[str, dict[str, str]]
LINES = ("-", "--", ":", "-.")
DOTS, COLOURS = 72, 48
"""Dots an inch and colours of a picture."""
CURVES = (("curve_loss", "training loss", "log"), ("curve_norm", "norm", "linear"), ("curve_imbalance", "imbalance", "linear"))


def _pyplot() -> Any:
    """Matplotlib's drawing module.

    Raises:
        StudyError: matplotlib is not there.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise StudyError("--plots needs matplotlib: pip install '.[notebooks]'") from error
    return pyplot


def plot_rates(sections: Sequence[Sequence[Row]], path: Path) -> list[Path]:
    """One panel a cell, one curve an arm: the mean validation score against the rate, a bar for the deviation.

    Returns:
        The path; nothing where no rate was chosen.

    Raises:
        StudyError: matplotlib is not there.
    """
    return _panels([row for rows in sections for row in rows if row.tuning is not None], path, _draw_rates)


def _draw_rates(axis: Any, rows: Sequence[Row], styles: Styles) -> None:
    """The curves of a cell."""
    for row in rows:
        if row.tuning is not None:
            axis.errorbar(
                row.tuning.rates, row.tuning.means, row.tuning.deviations, marker=".", capsize=2, **styles[row.method.name]
            )
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("validation score")
    if rows[0].cell.base.experiment != "autoencoder":
        axis.set_ylim(0, 100)  # in %; some bars go beyond


def plot_curves(sections: Sequence[Sequence[Row]], path: Path, curve: int) -> list[Path]:
    """One panel a cell, one curve an arm: the mean over the seeds of what `CURVES` names, against the step.

    Returns:
        The path; nothing where no cell is finished.

    Raises:
        StudyError: matplotlib is not there.
    """
    key, label, scale = CURVES[curve]

    def draw(axis: Any, rows: Sequence[Row], styles: Styles) -> None:
        for row in rows:
            columns = zip(*(result[key] for result in row.results if not result["diverged"]), strict=False)
            steps = next((result["curve_steps"] for result in row.results if not result["diverged"]), [])
            means = [statistics.fmean(values) if None not in values else float("nan") for values in columns]
            axis.plot(steps[: len(means)], means, **styles[row.method.name])
        axis.set_yscale(scale)
        axis.set_xlabel("step")
        axis.set_ylabel(label)

    return _panels([row for rows in sections for row in rows], path, draw)


def _styles(rows: Sequence[Row]) -> Styles:
    """One colour and kind of line for each arm, in all panels."""
    names = dict.fromkeys(row.method.name for row in rows)
    return {
        name: {"color": f"C{i % 10}", "linestyle": LINES[i // 10 % len(LINES)], "label": name} for i, name in enumerate(names)
    }


def _panels(rows: Sequence[Row], path: Path, draw: Any) -> list[Path]:
    """Draws one panel a cell, three in a line, under them the names of the arms, and saves the figure; returns its path."""
    pyplot = _pyplot()
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    if not cells:
        return []
    styles, across = _styles(rows), min(3, len(cells))
    down = -(-len(cells) // across)
    named = 0.25 * (2 + len(styles) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(4.6 * across, 3.1 * down + named), squeeze=False)
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    for axis, (cell, own) in zip(axes.flat, cells.items(), strict=False):
        draw(axis, own, styles)
        parts = [part for part in cell.title.split(", ") if "digits" not in part and "steps" not in part]
        axis.set_title(", ".join(parts), fontsize=8)
        axis.grid(alpha=0.3)
    handles = [pyplot.Line2D([], [], **style) for style in styles.values()]
    figure.legend(handles=handles, loc="lower center", ncol=across, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, named / figure.get_figheight(), 1, 1))
    _save(figure, path)
    pyplot.close(figure)
    return [path]


def _save(figure: Any, path: Path) -> None:
    """Writes a picture in few colours, which makes its file small."""
    from PIL import Image  # matplotlib needs it, so it is there

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def plot_all(sections: Sequence[Sequence[Row]], folder: Path) -> list[Path]:
    """Saves all pictures into a folder, and returns their paths.

    Raises:
        StudyError: matplotlib is not there.
    """
    paths = plot_rates(sections, folder / "rates.png")
    for number, (key, _, _) in enumerate(CURVES):
        paths += plot_curves(sections, folder / f"{key.removeprefix('curve_')}.png", number)
    return paths

"""The pictures: validation accuracy against learning rate, learning curves, norms and imbalances over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..configuration import StudyError
from .summary import Row

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


def plot_rates(sections: Sequence[Sequence[Row]], path: Path) -> None:
    """One panel a cell, one curve an arm: the mean validation score against the rate, a bar for the deviation.

    Raises:
        StudyError: matplotlib is not there.
    """
    cells: dict[Any, list[Row]] = {}
    for rows in sections:
        for row in rows:
            if row.tuning is not None:
                cells.setdefault(row.cell, []).append(row)
    _panels(cells, path, _draw_rates)


def _draw_rates(axis: Any, rows: Sequence[Row]) -> None:
    """The curves of a cell."""
    for row in rows:
        if row.tuning is not None:
            axis.errorbar(row.tuning.rates, row.tuning.means, row.tuning.deviations, label=row.method.name, marker=".", capsize=2)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("validation score")


def plot_curves(sections: Sequence[Sequence[Row]], path: Path, curve: int) -> None:
    """One panel a cell, one curve an arm: the mean over the seeds of what `CURVES` names, against the step.

    Raises:
        StudyError: matplotlib is not there.
    """
    key, label, scale = CURVES[curve]

    def draw(axis: Any, rows: Sequence[Row]) -> None:
        for row in rows:
            columns = zip(*(result[key] for result in row.results if not result["diverged"]), strict=False)
            steps = next((result["curve_steps"] for result in row.results if not result["diverged"]), [])
            means = [statistics.fmean(values) if None not in values else float("nan") for values in columns]
            axis.plot(steps[: len(means)], means, label=row.method.name)
        axis.set_yscale(scale)
        axis.set_xlabel("step")
        axis.set_ylabel(label)

    cells: dict[Any, list[Row]] = {}
    for rows in sections:
        for row in rows:
            cells.setdefault(row.cell, []).append(row)
    _panels(cells, path, draw)


def _panels(cells: dict[Any, list[Row]], path: Path, draw: Any) -> None:
    """Draws one panel a cell, three in a line, and saves the figure."""
    pyplot = _pyplot()
    if not cells:
        return
    across = min(3, len(cells))
    down = -(-len(cells) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(4.6 * across, 3.4 * down), squeeze=False)
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    for axis, (cell, rows) in zip(axes.flat, cells.items(), strict=False):
        draw(axis, rows)
        axis.set_title(
            ", ".join(part for part in cell.title.split(", ") if "digits" not in part and "steps" not in part), fontsize=8
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def plot_all(sections: Sequence[Sequence[Row]], folder: Path) -> list[Path]:
    """Saves all pictures into a folder, and returns their paths.

    Raises:
        StudyError: matplotlib is not there.
    """
    paths = [folder / "rates.png"]
    plot_rates(sections, paths[0])
    for number, (key, _, _) in enumerate(CURVES):
        paths.append(folder / f"{key.removeprefix('curve_')}.png")
        plot_curves(sections, paths[-1], number)
    return paths

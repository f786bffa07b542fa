"""Pictures of numbers: the history of a plan, and what `balance` did, layer by layer. They need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...optional import optional_import
from ...picture.notebook import shows_itself

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Range", "balance_figure", "history_figure"]

Range = tuple[float, float]
"""The smallest and the largest of some numbers."""

_DPI = 80.0
"""Px in an inch: pictures stay small in a notebook that is kept with its outputs."""

_BEFORE, _AFTER = "#d1710c", "#1f6fb4"
"""An orange and a blue that differ in brightness too, for readers who see no colours."""

_MOST_NAMES = 24
"""Names of layers below an axis: more would lie on one another, so that numbers stand there instead."""


def history_figure(steps: Sequence[int], norms: Sequence[float], imbalances: Sequence[float], *, figure: Any = None) -> Figure:
    """Draws the norm and the imbalance over the steps.

    Args:
        steps, norms, imbalances: one number a record.
        figure: to draw into; None: a new one.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    found = _figure(8, 3, "plan.history.plot()") if figure is None else figure
    left, right = found.subplots(1, 2)
    marker = "." if len(steps) < 50 else ""
    left.plot(steps, norms, color=_AFTER, marker=marker)
    left.set(title="Norm of the weights", xlabel="step")
    right.plot(steps, imbalances, color=_AFTER, marker=marker)
    right.set(title="Imbalance (0 is balanced)", xlabel="step")
    positive = [value for value in imbalances if value > 0]
    if positive and len(positive) == len(imbalances) and max(positive) > 30 * min(positive):
        right.set_yscale("log")
    _only_whole(left, right)
    return found


def balance_figure(
    norms: tuple[Mapping[str, float], Mapping[str, float]],
    ranges: tuple[Mapping[str, Range], Mapping[str, Range]],
    *,
    figure: Any = None,
) -> Figure:
    """Draws, before and after, the norm of each layer, and the range of the norms of its channels.

    Args:
        norms: by layer, before and after.
        ranges: by layer, the smallest and the largest norm of a channel, before and after; empty where they are not known.
        figure: to draw into; None: a new one.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    count = 2 if ranges[0] else 1
    found = _figure(5 * count + 1, 3.4, "result.plot()") if figure is None else figure
    axes = found.subplots(1, count, squeeze=False)[0]
    layers = list(norms[0])
    for values, color, label in zip(norms, (_BEFORE, _AFTER), ("before", "after"), strict=True):
        axes[0].plot(range(len(layers)), [values[layer] for layer in layers], ".-", color=color, label=label)
    axes[0].set(title="Norm of each layer", ylim=(0, None))
    if ranges[0]:
        _draw_ranges(axes[1], layers, ranges)
    for one in axes:
        _name_layers(one, layers)
    axes[0].legend(frameon=False)
    return found


def _draw_ranges(axes: Axes, layers: Sequence[str], ranges: tuple[Mapping[str, Range], Mapping[str, Range]]) -> None:
    """Draws a bar from the smallest to the largest channel of each layer, before and after side by side."""
    for values, color, label, aside in zip(ranges, (_BEFORE, _AFTER), ("before", "after"), (-0.18, 0.18), strict=True):
        known = [(place + aside, values[layer]) for place, layer in enumerate(layers) if layer in values]
        places, spans = [place for place, _ in known], [span for _, span in known]
        axes.vlines(places, [low for low, _ in spans], [high for _, high in spans], color=color, linewidth=2.5, label=label)
        # A range that is nearly a point is seen by its ends.
        axes.plot([*places, *places], [end for ends in zip(*spans, strict=True) for end in ends], "_", color=color, markersize=5)
    axes.set_yscale("log")
    axes.set_title("Channel norms of each layer, smallest to largest")
    ticker = optional_import("matplotlib.ticker", "plot", "plot()")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, place: f"{value:g}"))
    # Within some decades, numbers at the decades are enough; within one, there may be none.
    near = ticker.FuncFormatter(lambda value, place: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.yaxis.set_minor_formatter(near if high < 100 * low else ticker.NullFormatter())


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    """Writes the names of the layers below an axis, or their numbers where there are many."""
    if len(layers) <= _MOST_NAMES:
        axes.set_xticks(range(len(layers)), layers, rotation=90 if max(map(len, layers), default=0) > 3 else 0, fontsize="small")
        axes.set_xlabel("layer")
    else:
        axes.set_xlabel(f"layer, 0: {layers[0]}, {len(layers) - 1}: {layers[-1]}", fontsize="small")
    axes.grid(axis="y", alpha=0.3)


def _only_whole(*axes: Axes) -> None:
    """Has steps marked at whole numbers only."""
    ticker = optional_import("matplotlib.ticker", "plot", "plot()")
    for one in axes:
        one.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        one.grid(alpha=0.3)


def _figure(width: float, height: float, call: str) -> Figure:
    """Returns an empty figure that belongs to no window, so that nobody has to close it, and that notebooks show."""
    module = optional_import("matplotlib.figure", "plot", call)
    figure: Figure = shows_itself(module.Figure(figsize=(width, height), dpi=_DPI, layout="constrained"), _DPI)
    return figure

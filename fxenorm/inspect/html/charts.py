"""The charts of a page, drawn by Bokeh: the histogram of imbalances and the norms of the layers, before and after balancing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...optional import optional_import
from ...picture.palette import PALETTES
from .content import LayerRow

__all__ = ["AFTER", "BEFORE", "histogram", "layer_chart", "library_script"]

BEFORE, AFTER = "before balancing", "after balancing"

_BINS = 41
"""An odd number, so that 0 is inside a bin."""

_CALL = "fxenorm-inspect --html"


def library_script() -> str:
    """Returns Bokeh's script, which its package ships, to stand in the page.

    Raises:
        MissingLibraryError: Bokeh is not installed.
    """
    resources = optional_import("bokeh.resources", "report", _CALL)
    return str(resources.Resources(mode="inline", components=["bokeh"]).js_raw[0])


def histogram(before: Sequence[float], after: Sequence[float], target: str) -> Any:
    """Returns the histogram of log(N / P) / p over the scales that may move, as the JSON of a Bokeh document.

    Args:
        before, after: finite numbers, one for each scale.
        target: id of the page's element that shows it.
    """
    least, most = min((*before, *after)), max((*before, *after))
    reach = max(abs(least), abs(most), 1e-3) * 1.02
    edges = np.linspace(-reach, reach, _BINS + 1)
    counts = [np.histogram(values, edges)[0] for values in (before, after)]
    plot = _plot("log(N / P) / p of a scale (0 is balanced)", "scales (log axis)", y_axis_type="log")
    plot.y_range = _model("Range1d")(0.5, 1.6 * max(1, int(max(count.max() for count in counts))))
    for name, count in zip((BEFORE, AFTER), counts, strict=True):
        shown = count > 0
        source = {"left": edges[:-1][shown], "right": edges[1:][shown], "top": count[shown], "count": count[shown]}
        colour = _colour(name)
        plot.quad(
            left="left",
            right="right",
            top="top",
            bottom=0.5,
            source=_model("ColumnDataSource")(source),
            name=name,
            legend_label=name,
            fill_color=colour,
            fill_alpha=0.55,
            line_color=colour,
            hatch_pattern="right_diagonal_line" if name == AFTER else None,
            hatch_color=colour,
        )
    tips = [("from … to", "@left{0.000} … @right{0.000}"), ("scales", "@count{0,0}")]
    plot.add_tools(_model("HoverTool")(tooltips=tips))
    return _json(plot, target)


def layer_chart(layers: Sequence[LayerRow], target: str) -> Any:
    """Returns the norms of the layers in the order of the parameters, as the JSON of a Bokeh document.

    Args:
        layers: those that are counted.
        target: id of the page's element that shows it.
    """
    plot = _plot("layer, in the order of the parameters", "norm (log axis)", y_axis_type="log")
    numbers = list(range(1, len(layers) + 1))
    for name, values, marker in (
        (BEFORE, [layer.before for layer in layers], "circle"),
        (AFTER, [layer.after for layer in layers], "diamond"),
    ):
        known = [None if value is None or not 0 < value < math.inf else value for value in values]
        source = _model("ColumnDataSource")({"x": numbers, "y": known, "layer": [layer.name for layer in layers]})
        colour = _colour(name)
        plot.line("x", "y", source=source, name=name, color=colour, line_alpha=0.6)
        plot.scatter("x", "y", source=source, name=name, legend_label=name, color=colour, size=6, marker=marker)
    hovered = [one for one in plot.renderers if type(one.glyph).__name__ == "Scatter"]
    plot.add_tools(_model("HoverTool")(tooltips=[("layer", "@layer"), ("norm", "@y{0.0000}")], renderers=hovered))
    return _json(plot, target)


def _plot(across: str, up: str, **more: Any) -> Any:
    """Returns an empty plot in the colours of the light ground; the page's script repaints it for a dark one."""
    plotting = optional_import("bokeh.plotting", "report", _CALL)
    plot = plotting.figure(
        height=300,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,xwheel_zoom,reset",
        active_scroll=None,
        active_drag=None,
        toolbar_location="above",
        x_axis_label=across,
        y_axis_label=up,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **more,
    )
    plot.toolbar.logo = None
    return plot


def _colour(name: str) -> str:
    """Returns the colour of the numbers before or after, on a light ground."""
    return PALETTES["light"]["before" if name == BEFORE else "after"]


def _model(name: str) -> Any:
    """Returns a class of Bokeh's models."""
    return getattr(optional_import("bokeh.models", "report", _CALL), name)


def _json(plot: Any, target: str) -> Any:
    """Returns a plot as JSON; the legend stands above it, where it hides nothing."""
    plot.add_layout(plot.legend[0], "above")
    plot.legend.orientation = "horizontal"
    plot.legend.border_line_color = None
    plot.legend.background_fill_color = None
    return optional_import("bokeh.embed", "report", _CALL).json_item(plot, target)

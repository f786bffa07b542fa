"""Draws a picture by matplotlib, for notebooks and files; matplotlib is imported when it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import OptionError
from ..optional import optional_import
from .layout import SMALL_CHARACTER, Layout, PlacedBox, PlacedFrame, Track, box_words, placed
from .notebook import shows_itself
from .palette import KIND_DASHES, PALETTES
from .picture import Line, Picture
from .svg import shown

__all__ = ["figure_of", "save"]

_DPI = 96.0
"""Px in an inch: places are in px, matplotlib's sizes in inches and points."""

_POINT = 72.0 / _DPI

_LEGEND = 22.0
"""Height of a line below the picture that explains the colours, in px."""

_SIGNS = {"writes": "a dot: writes the group", "reads": "an arrow: reads it"}


def figure_of(picture: Picture) -> Any:
    """Draws the pair graph.

    Args:
        picture: the boxes and lines.

    Returns:
        A ``matplotlib.figure.Figure`` that no window manager knows of; a notebook shows it.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    module = optional_import("matplotlib.figure", "plot", "plan.draw()")
    layout = placed(picture)
    legend = list(_legend(picture, layout))
    height = max((y for _, y, _ in legend), default=layout.height) + _LEGEND
    figure = module.Figure(figsize=(layout.width / _DPI, height / _DPI), dpi=_DPI, facecolor=_colour("ground"))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0.0, layout.width), ylim=(height, 0.0))
    axes.set_axis_off()
    drawing = _Drawing(axes)
    drawing.add_all(picture, layout)
    drawing.add_legend(legend)
    return shows_itself(figure, _DPI)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file, in the format that the file's ending names.

    Raises:
        OptionError: matplotlib knows no format of this ending, or the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=2 * _DPI)
    except (ValueError, OSError) as error:
        raise OptionError(f"path={str(path)!r}: the picture cannot be written: {error}") from error


def _legend(picture: Picture, layout: Layout) -> Iterator[tuple[float, float, str]]:
    """Yields the kinds of lines and the signs that occur, each with its place below the picture."""
    x, y = 20.0, layout.height + 4
    for kind in (*dict.fromkeys(line.kind for line in picture.lines), *(_SIGNS if picture.lines else ())):
        width = 20 + SMALL_CHARACTER * len(_SIGNS.get(kind, kind)) + (0 if kind in _SIGNS else 28)
        if x > 20 and x + width > layout.width:
            x, y = 20.0, y + 18
        yield x, y, kind
        x += width


def _colour(name: str) -> str:
    """Returns a colour of the light ground."""
    return PALETTES["light"][name]


class _Drawing:
    """Adds the parts of a picture to matplotlib's axes, whose units are px."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.patches = optional_import("matplotlib.patches", "plot", "plan.draw()")
        self.path = optional_import("matplotlib.path", "plot", "plan.draw()").Path

    def add_all(self, picture: Picture, layout: Layout) -> None:
        """Adds frames, lines, boxes and the legend, those in front last."""
        for frame in layout.frames:
            self.add_frame(frame)
        for track in layout.tracks:
            self.add_track(track, picture.lines[track.line])
        for box in layout.boxes:
            self.add_box(box)

    def add_frame(self, at: PlacedFrame) -> None:
        """Adds a block with its title and the number of its copies."""
        self._rectangle(at.x, at.y, at.width, at.height, 10, fill="none", edge="rule")
        self._words(at.x + 12, at.y + 17, at.frame.title, name=True)
        if at.frame.copies > 1:
            self._words(at.x + at.width - 12, at.y + 17, f"×{at.frame.copies}", name=True, align="right")

    def add_box(self, at: PlacedBox) -> None:
        """Adds a layer with its channels, several layers as a stack."""
        for step in (3, 0) if len(at.box.layers) > 1 else (0,):
            self._rectangle(at.x + step, at.y + step, at.width, at.height, 7, fill=_colour("panel"), edge="edge")
        middle, words = at.y + at.height / 2, box_words(at.box)
        self._words(at.x + 12, middle - 3 if words else middle + 4, at.box.name, name=True)
        self._words(at.x + 12, middle + 12, words)

    def add_track(self, track: Track, line: Line) -> None:
        """Adds the part of a line in one column: its lane, its branches, dots where it is written, arrows where it is read."""
        colour, dashes = _colour(line.kind), KIND_DASHES.get(line.kind)
        corners: list[tuple[float, float]] = [(track.x, track.top), (track.x, track.bottom)]
        codes = [self.path.MOVETO, self.path.LINETO]
        for port in track.ports:
            corners += [(track.x, port.y), (port.x - (0 if port.writes else 5), port.y)]
            codes += [self.path.MOVETO, self.path.LINETO]
        style = "solid" if dashes is None else (0, dashes)
        path = self.path(corners, codes)
        self.axes.add_patch(self.patches.PathPatch(path, fill=False, edgecolor=colour, linewidth=1.8 * _POINT, linestyle=style))
        for port in track.ports:
            if port.writes:
                end = self.patches.Circle((port.x, port.y), 3.5, color=colour, linewidth=0)
            else:
                tip = [(port.x - 7, port.y - 4), (port.x, port.y), (port.x - 7, port.y + 4)]
                end = self.patches.Polygon(tip, color=colour, linewidth=0)
            self.axes.add_patch(end)
        if track.ports:
            first = next((port for port in track.ports if port.writes), track.ports[0])
            self._words(first.x - 9, first.y - 4, line.channels, colour=colour, align="right")

    def add_legend(self, entries: Iterable[tuple[float, float, str]]) -> None:
        """Adds what the signs mean: each kind of line with its colour, then dots and arrows."""
        for x, y, kind in entries:
            if kind in _SIGNS:
                self._words(x, y + 4, _SIGNS[kind])
                continue
            dashes = KIND_DASHES.get(kind)
            style = "solid" if dashes is None else (0, dashes)
            self.axes.plot([x, x + 22], [y, y], color=_colour(kind), linewidth=1.8 * _POINT, linestyle=style)
            self._words(x + 28, y + 4, kind)

    def _rectangle(self, x: float, y: float, width: float, height: float, radius: float, *, fill: str, edge: str) -> None:
        """Adds a rectangle with round corners."""
        shape = f"round,pad=0,rounding_size={radius:g}"
        self.axes.add_patch(
            self.patches.FancyBboxPatch(
                (x, y), width, height, boxstyle=shape, facecolor=fill, edgecolor=_colour(edge), linewidth=_POINT
            )
        )

    def _words(self, x: float, y: float, text: str, *, name: bool = False, colour: str = "", align: str = "left") -> None:
        """Adds words as they are: a dollar sign begins no formula."""
        self.axes.text(
            x,
            y,
            shown(text),
            fontsize=(12 if name else 10.5) * _POINT,
            family="monospace" if name else "sans-serif",
            color=colour or _colour("text" if name else "muted"),
            ha=align,
            va="baseline",
            parse_math=False,
        )

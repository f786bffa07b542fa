"""Gives boxes and lines their places: boxes in graph order in columns, lines in lanes to the left of them.

A line runs down its lane from the first box that writes or reads its group to the last, with a branch to each; short lines lie
close to the boxes, so that few branches cross a lane. Where a column ends, a line goes on at the top of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .picture import Box, Frame, Picture

__all__ = ["CHARACTER", "SMALL_CHARACTER", "Layout", "PlacedBox", "PlacedFrame", "Port", "Track", "box_words", "placed"]

CHARACTER, SMALL_CHARACTER = 7.3, 6.0
"""Widths of a character of a name (12 px, monospaced) and of a small word (10.5 px), in px."""

_LANE, _GAP, _PAD, _TITLE, _HEIGHT, _PORT = 16.0, 12.0, 12.0, 26.0, 40.0, 14.0
"""Widths and heights in px: of a lane, between boxes, inside a frame, of its title, of a box, between two branches."""

_COUNT = 84.0
"""Width of the number of copies in the title of a frame, with the sign that opens it, in px."""

_MARGIN, _BETWEEN, _BEYOND = 16.0, 36.0, 10.0
"""Around the picture, between columns, and of a line beyond the end of a column, in px."""

_MOST_COLUMNS = 12

_ONE_COLUMN = 720.0
"""A column of at most this height, in px, is not shared out: a choice, the height of a window."""


@dataclass(frozen=True)
class PlacedBox:
    """A box with its place; x and y are those of its upper left corner, in px."""

    box: Box
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class PlacedFrame:
    """A frame with its place; x and y are those of its upper left corner, in px."""

    frame: Frame
    number: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Port:
    """The place where a line meets a box.

    Attributes:
        box: position of the box in the picture.
        x, y: the place, on the left side of the box.
        writes: whether the box writes the group; else it reads it.
    """

    box: int
    x: float
    y: float
    writes: bool


@dataclass(frozen=True)
class Track:
    """The part of a line in one column.

    Attributes:
        line: position of the line in the picture.
        x: its lane.
        top, bottom: its ends.
        ports: its branches, from top to bottom.
    """

    line: int
    x: float
    top: float
    bottom: float
    ports: tuple[Port, ...]


@dataclass(frozen=True)
class Layout:
    """Everything with its place; width and height are in px."""

    width: float
    height: float
    boxes: tuple[PlacedBox, ...]
    frames: tuple[PlacedFrame, ...]
    tracks: tuple[Track, ...]


@dataclass(frozen=True)
class _End:
    """A branch of a line before it has a place."""

    line: int
    box: int
    writes: bool


def placed(picture: Picture, aspect: float = 1.4) -> Layout:
    """Gives everything in a picture its place.

    Args:
        picture: the boxes and lines.
        aspect: the wanted ratio of width to height, which decides on the number of columns.
    """
    ends = _ends_by_box(picture)
    heights = [max(_HEIGHT, _PORT * (len(own) + 1)) for own in ends]
    units = _units(picture, heights)
    best: Layout | None = None
    for count in range(1, min(len(units), _MOST_COLUMNS) + 1):
        found = _in_columns(picture, _columns(units, count), ends, heights)
        if best is None or _distance(found, aspect) < _distance(best, aspect):
            best = found
        if found.height <= _ONE_COLUMN:
            break
    return best if best is not None else Layout(2 * _MARGIN, 2 * _MARGIN, (), (), ())


def _distance(layout: Layout, aspect: float) -> float:
    """Returns how far a layout's ratio of width to height is from the wanted one."""
    return abs(math.log(layout.width / layout.height / aspect))


def _ends_by_box(picture: Picture) -> list[list[_End]]:
    """Returns the branches of each box, those that it reads first."""
    ends: list[list[_End]] = [[] for _ in picture.boxes]
    for writes in (False, True):
        for number, line in enumerate(picture.lines):
            for box in line.writers if writes else line.readers:
                ends[box].append(_End(number, box, writes))
    return ends


def _units(picture: Picture, heights: Sequence[float]) -> list[tuple[list[int], float]]:
    """Returns what stays together in a column: the boxes of a frame, or one box; with the height."""
    units: list[tuple[list[int], float]] = []
    for number, box in enumerate(picture.boxes):
        if box.frame >= 0 and units and picture.boxes[units[-1][0][-1]].frame == box.frame:
            boxes, height = units[-1]
            units[-1] = ([*boxes, number], height + heights[number] + _GAP)
        else:
            units.append(([number], heights[number] + _GAP + (_TITLE + _PAD if box.frame >= 0 else 0)))
    return units


def _columns(units: Sequence[tuple[list[int], float]], count: int) -> list[list[int]]:
    """Shares the units out over columns of about the same height."""
    left, filled = sum(height for _, height in units), 0.0
    columns: list[list[int]] = []
    current: list[int] = []
    for boxes, height in units:
        if current and len(columns) < count - 1 and filled + height / 2 > left / (count - len(columns)):
            columns.append(current)
            left, current, filled = left - filled, [], 0.0
        current, filled = [*current, *boxes], filled + height
    return [*columns, current]


def _in_columns(
    picture: Picture, columns: Sequence[Sequence[int]], ends: Sequence[Sequence[_End]], heights: Sequence[float]
) -> Layout:
    """Returns the layout with these boxes in the columns."""
    column_of = {box: number for number, boxes in enumerate(columns) for box in boxes}
    spans = [sorted(column_of[box] for box in (*line.writers, *line.readers)) for line in picture.lines]
    boxes: list[PlacedBox] = []
    frames: list[PlacedFrame] = []
    tracks: list[Track] = []
    x = _MARGIN
    for number, members in enumerate(columns):
        tops, below = _tops(picture, members, heights)
        runs = _runs(picture, members, ends, heights, tops)
        through = {line: (spans[line][0] < number, spans[line][-1] > number) for line in range(len(spans)) if spans[line]}
        runs |= {line: [] for line, (before, after) in through.items() if before and after and line not in runs}
        intervals = {
            line: (
                _MARGIN - _BEYOND if through[line][0] else min(y for _, y in run),
                below + _BEYOND if through[line][1] else max(y for _, y in run),
            )
            for line, run in runs.items()
        }
        lanes = _lanes(intervals)
        count = max(lanes.values(), default=-1) + 1
        words = max((len(picture.lines[line].channels) for line in runs), default=0)
        left = x + count * _LANE + words * SMALL_CHARACTER + 2 * _PAD
        width = max(_box_width(picture, box) for box in members)
        for line, run in sorted(runs.items()):
            ports = tuple(Port(end.box, left, y, end.writes) for end, y in sorted(run, key=lambda one: one[1]))
            at = x + (count - lanes[line] - 0.5) * _LANE
            tracks.append(Track(line, at, *intervals[line], ports))
        boxes += [PlacedBox(picture.boxes[box], left, tops[box], width, heights[box]) for box in members]
        frames += _frames(picture, members, tops, heights, (left, width))
        x = left + width + _PAD + _BETWEEN
    height = max(box.y + box.height for box in boxes) + _PAD + _MARGIN
    return Layout(x - _BETWEEN + _MARGIN, height, tuple(boxes), tuple(frames), tuple(tracks))


def _tops(picture: Picture, members: Sequence[int], heights: Sequence[float]) -> tuple[dict[int, float], float]:
    """Returns the upper ends of the boxes of a column, and its lower end."""
    tops: dict[int, float] = {}
    y, frame = _MARGIN, -1
    for box in members:
        own = picture.boxes[box].frame
        if own != frame:
            y += (_PAD if frame >= 0 else 0) + (_TITLE if own >= 0 else 0)
            frame = own
        tops[box] = y
        y += heights[box] + _GAP
    return tops, y


def _runs(
    picture: Picture,
    members: Sequence[int],
    ends: Sequence[Sequence[_End]],
    heights: Sequence[float],
    tops: dict[int, float],
) -> dict[int, list[tuple[_End, float]]]:
    """Returns, by line, its branches in a column with their heights."""
    runs: dict[int, list[tuple[_End, float]]] = {}
    for box in members:
        for place, end in enumerate(ends[box]):
            y = tops[box] + heights[box] * (place + 1) / (len(ends[box]) + 1)
            runs.setdefault(end.line, []).append((end, y))
    return runs


def _lanes(intervals: dict[int, tuple[float, float]]) -> dict[int, int]:
    """Returns, by line, its lane, counted from the boxes: short lines first, so that they lie close to the boxes."""
    taken: list[list[tuple[float, float]]] = []
    lanes: dict[int, int] = {}
    for line, (top, bottom) in sorted(intervals.items(), key=lambda item: (item[1][1] - item[1][0], item[1][0])):
        lane = next((k for k, others in enumerate(taken) if all(bottom < a or top > b for a, b in others)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((top, bottom))
        lanes[line] = lane
    return lanes


def _box_width(picture: Picture, number: int) -> float:
    """Returns the width that the words of a box need, and those of the frame around it."""
    box = picture.boxes[number]
    frame = picture.frames[box.frame] if box.frame >= 0 else None
    title = 0.0 if frame is None else len(frame.title) * CHARACTER + (_COUNT if frame.copies > 1 else 0)
    return (
        max(
            title - 2 * _PAD,
            len(box.name) * CHARACTER + (_COUNT if len(box.layers) > 1 and frame is None else 0),
            len(box_words(box)) * SMALL_CHARACTER,
        )
        + 2 * _PAD
    )


def box_words(box: Box) -> str:
    """Returns the second line of a box: its channels, and what fixes some of them."""
    return " · ".join(filter(None, (box.sizes, box.fixed)))


def _frames(
    picture: Picture,
    members: Sequence[int],
    tops: dict[int, float],
    heights: Sequence[float],
    across: tuple[float, float],
) -> list[PlacedFrame]:
    """Returns the frames of a column around their boxes."""
    left, width = across
    found = []
    for number in dict.fromkeys(picture.boxes[box].frame for box in members):
        own = [box for box in members if picture.boxes[box].frame == number]
        if number >= 0:
            top = tops[own[0]] - _TITLE
            bottom = tops[own[-1]] + heights[own[-1]] + _PAD - 2
            found.append(PlacedFrame(picture.frames[number], number, left - _PAD, top, width + 2 * _PAD, bottom - top))
    return found

"""The pictures of a page: the collapsed one, and one for each block that can be opened, all drawn beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...analysis.analysis import Analysis
from ...picture.build import picture_of
from ...picture.picture import Picture
from ...picture.svg import svg_text

__all__ = ["MOST_BOXES", "Pictures", "pictures_of"]

MOST_BOXES = 700
"""Boxes of an opened picture at most: what a browser moves without delay on a small machine. A choice."""

_MOST_CHARACTERS = 3_000_000
"""Characters of all opened pictures at most, so that the page stays small. A choice."""


@dataclass(frozen=True)
class Pictures:
    """The pictures as SVG, and the numbers that say which layers and groups their parts stand for.

    Attributes:
        drawn: the first is the collapsed one.
        parts: by picture: the layers of each box, the groups of each line, and for each frame and box the picture in which it is
            opened, -1 where there is none.
        whole: the picture in which each layer has its own box, -1 where that has too many.
    """

    drawn: tuple[str, ...]
    parts: tuple[dict[str, Any], ...]
    whole: int


def pictures_of(analysis: Analysis, title: str, layers: Mapping[str, int], groups: Mapping[str, int]) -> Pictures:
    """Draws all pictures.

    Args:
        analysis: the findings on the model.
        title: the name of the model.
        layers, groups: the numbers of the layers and groups on the page, by name.
    """
    first = picture_of(analysis)
    drawn, kept = [""], [first]
    size = 0

    def keep(picture: Picture) -> int:
        """Draws an opened picture; returns its number, -1 where it or all of them would be too large."""
        nonlocal size
        if len(picture.boxes) > MOST_BOXES or len(picture.boxes) <= len(first.boxes):
            return -1
        if picture in kept:
            return kept.index(picture)
        text = svg_text(picture, title)
        if size + len(text) > _MOST_CHARACTERS:
            return -1
        size += len(text)
        drawn.append(text)
        kept.append(picture)
        return len(drawn) - 1

    frames = [
        keep(picture_of(analysis, opened=_inside(first, number))) if frame.copies > 1 else -1
        for number, frame in enumerate(first.frames)
    ]
    boxes = [
        frames[box.frame]
        if box.frame >= 0 and frames[box.frame] >= 0
        else keep(picture_of(analysis, opened=box.layers))
        if len(box.layers) > 1 and box.frame < 0
        else -1
        for box in first.boxes
    ]
    many = any(len(box.layers) > 1 for box in first.boxes) and sum(len(box.layers) for box in first.boxes) <= MOST_BOXES
    whole = keep(picture_of(analysis, expand=True)) if many else -1
    drawn[0] = svg_text(first, title, opens=[number for number, place in enumerate(frames) if place >= 0])
    parts = [_parts(picture, layers, groups) for picture in kept]
    parts[0] |= {"frames": frames, "opens": boxes}
    return Pictures(tuple(drawn), tuple(parts), whole)


def _inside(picture: Picture, frame: int) -> list[str]:
    """Returns all layers in a frame."""
    return [layer for box in picture.boxes if box.frame == frame for layer in box.layers]


def _parts(picture: Picture, layers: Mapping[str, int], groups: Mapping[str, int]) -> dict[str, Any]:
    """Returns the layers of each box and the groups of each line, by number."""
    return {
        "boxes": [[layers[name] for name in box.layers if name in layers] for box in picture.boxes],
        "lines": [[groups[name] for name in line.groups] for line in picture.lines],
        "frames": [-1] * len(picture.frames),
        "opens": [-1] * len(picture.boxes),
    }

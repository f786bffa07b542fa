"""`Picture`: the boxes and lines of a drawing of the pair graph. Plain data without positions."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Box", "Frame", "Line", "Picture"]


@dataclass(frozen=True)
class Box:
    """A layer, or layers of equal place in blocks of equal structure, drawn as one.

    Attributes:
        layers: their names.
        name: the name in words, repeated numbers as a range, counted from the frame's title.
        sizes: the channels that one of them reads and writes, as "64 → 128".
        fixed: what fixes channels on its sides, as "out fixed by batch_norm"; "" where all of them move.
        frame: position of its frame in the picture, -1 where it has none.
    """

    layers: tuple[str, ...]
    name: str
    sizes: str
    fixed: str
    frame: int = -1


@dataclass(frozen=True)
class Frame:
    """A block of layers, or blocks of equal structure that are drawn as one.

    Attributes:
        title: the module's name in words, repeated numbers as a range.
        copies: the number of blocks that it stands for.
    """

    title: str
    copies: int


@dataclass(frozen=True)
class Line:
    """A group, or groups of equal structure that are drawn as one: it runs from those that write it to those that read it.

    Attributes:
        groups: their names.
        kind: how they connect their layers; see `fxenorm.analysis.groups.Group`.
        channels: the number of groups and of the channels of each, as "32 × 64".
        writers, readers: positions of boxes in the picture.
    """

    groups: tuple[str, ...]
    kind: str
    channels: str
    writers: tuple[int, ...]
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """The pair graph as it is drawn.

    Attributes:
        boxes: in graph order, those of one frame next to one another.
        frames: the blocks.
        lines: the groups.
    """

    boxes: tuple[Box, ...]
    frames: tuple[Frame, ...]
    lines: tuple[Line, ...]

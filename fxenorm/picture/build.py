"""Builds the `Picture` of an analysis: blocks of equal structure are drawn as one, until they are opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from ..analysis.analysis import Analysis
from ..analysis.groups import layer_of
from ..analysis.pairs import short_operator
from ..symmetry.account import ChannelAccount, WeightSide
from ..symmetry.symmetry import Symmetry
from ..text.describe import MOST_ROWS, items_of, layers_that_multiply
from ..text.repeats import Item, Row, rows_of
from ..text.rows import channel_words
from .blocks import Alike, alike
from .picture import Box, Frame, Line, Picture

__all__ = ["picture_of"]

FEW_LAYERS = 60
"""A model with no more layers is drawn layer by layer: resnet18 has 41. A choice."""

_FIXED = ("input", "output", "barrier", "option")


def picture_of(analysis: Analysis, *, expand: bool | None = None, opened: Collection[str] = ()) -> Picture:
    """Builds the picture of a pair graph.

    Args:
        analysis: the findings on the model.
        expand: whether each layer has its own box; None: where the model has few layers.
        opened: layers that are not drawn as one with others, nor are the groups that they write or read.

    Returns:
        The picture; every layer that multiplies is in exactly one box, every group in exactly one line.
    """
    items = items_of(analysis)
    ends = (name for item in items for name in (*item.producers, *item.consumers))
    order = _order(analysis.symmetry)
    layers = sorted(
        dict.fromkeys((*layers_that_multiply(analysis.symmetry), *ends)), key=lambda name: order.get(name, len(order))
    )
    whole = len(layers) <= FEW_LAYERS if expand is None else expand
    rows = _rows(items, whole, frozenset(opened))
    own = _own(analysis.symmetry)
    uses: dict[str, set[object]] = {name: {name} if name in opened else {own.get(name)} for name in layers}
    for number, row in enumerate(rows):
        for item in row.members:
            for side, names in (("out", item.producers), ("in", item.consumers)):
                for name in names:
                    uses[name].add((number, side))
    shown = alike(layers, {name: frozenset(found) for name, found in uses.items()}, merge=not whole)
    place = {name: position for position, name in enumerate(layers)}
    return _picture(_in_order(shown, place), rows, [item.name for item in items], analysis.symmetry.account)


def _own(symmetry: Symmetry) -> dict[str, tuple[object, ...]]:
    """Returns, by layer, the roles of its parameters and their numbers of axes, which layers that are drawn as one share."""
    found: dict[str, tuple[object, ...]] = {}
    for name, shape in symmetry.shapes.items():
        if name not in symmetry.buffers:
            found[layer_of(name)] = (*found.get(layer_of(name), ()), symmetry.roles.get(name), len(shape))
    return found


def _order(symmetry: Symmetry) -> dict[str, int]:
    """Returns the layers' places in graph order."""
    flow = symmetry.flows.get("eval") or next(iter(symmetry.flows.values()), ())
    names = dict.fromkeys(layer_of(use.name) for node in flow for use in node.parameters)
    return {name: position for position, name in enumerate(names)}


def _rows(items: Sequence[Item], whole: bool, opened: Collection[str]) -> list[Row]:
    """Returns the groups in rows; those that an opened layer writes or reads have a row each."""
    if whole:
        return list(rows_of(items))
    rows: list[Row] = []
    for row in rows_of(items, MOST_ROWS):
        touched = any(name in opened for item in row.members for name in (*item.producers, *item.consumers))
        rows += rows_of(row.members) if touched else [row]
    return rows


def _in_order(shown: Sequence[Alike], place: Mapping[str, int]) -> list[Alike]:
    """Returns boxes in graph order, those of one block next to one another."""
    first = {one.layers: min(place[name] for name in one.layers) for one in shown}
    begins: dict[str, int] = {}
    for one in shown:
        begins[one.block or one.name] = min(first[one.layers], begins.get(one.block or one.name, len(place)))
    return sorted(shown, key=lambda one: (begins[one.block or one.name], one.block or one.name, first[one.layers]))


def _picture(shown: Sequence[Alike], rows: Sequence[Row], names: Sequence[str], account: ChannelAccount | None) -> Picture:
    """Puts boxes, frames and lines together, the lines in the order of these names of groups."""
    sides = _sides(account)
    frames: list[Frame] = []
    boxes: list[Box] = []
    for (block, copies), members in groupby(shown, key=lambda one: (one.block, one.copies)):
        if block:
            frames.append(Frame(block, copies))
        for one in members:
            name = one.name.removeprefix(block).removeprefix(".") or one.name
            own = [side for layer in one.layers for side in sides.get(layer, ())]
            boxes.append(Box(one.layers, name, _sizes(own), _fixed(own, account), len(frames) - 1 if block else -1))
    box_of = {layer: number for number, box in enumerate(boxes) for layer in box.layers}
    order = {name: number for number, name in enumerate(names)}
    lines = sorted((line for row in rows for line in _lines(row, box_of)), key=lambda line: order[line.groups[0]])
    return Picture(tuple(boxes), tuple(frames), tuple(lines))


def _lines(row: Row, box_of: Mapping[str, int]) -> Iterator[Line]:
    """Yields the lines of some groups: one for those that the same boxes write and read."""

    def boxes(names: Iterable[str]) -> tuple[int, ...]:
        """Returns the boxes of some layers in the picture's order."""
        return tuple(sorted({box_of[name] for name in names}))

    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Item]] = {}
    for item in row.members:
        found.setdefault((boxes(item.producers), boxes(item.consumers)), []).append(item)
    for (writers, readers), members in found.items():
        words = channel_words(replace(row, members=tuple(members)))
        yield Line(tuple(item.name for item in members), members[0].kind, words, writers, readers)


def _sides(account: ChannelAccount | None) -> dict[str, list[WeightSide]]:
    """Returns the sides of the weights, by layer."""
    found: dict[str, list[WeightSide]] = {}
    for side in account.sides if account is not None else ():
        found.setdefault(layer_of(side.parameter), []).append(side)
    return found


def _sizes(sides: Sequence[WeightSide]) -> str:
    """Returns the channels that a layer reads and writes, as "64 → 128"; "64" where it only writes."""
    words = {}
    for where in ("input", "output"):
        sizes = sorted({side.total for side in sides if side.side == where})
        words[where] = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}..{sizes[-1]:,}" if sizes else ""
    return " → ".join(filter(None, (words["input"], words["output"])))


def _fixed(sides: Sequence[WeightSide], account: ChannelAccount | None) -> str:
    """Returns the operators that fix channels, by side, as "in fixed by input, out by batch_norm"."""
    if account is None:
        return ""
    told: list[str] = []
    for where, word in (("input", "in"), ("output", "out")):
        counts: Counter[str] = Counter()
        for share in (share for side in sides if side.side == where for share in side.shares if share.row >= 0):
            cause = account.rows[share.row]
            if cause.kind in _FIXED:
                counts[short_operator(cause.operator)] += share.count
        if counts:
            names = " and ".join(name for name, _ in counts.most_common(2))
            told.append(f"{word} by {names}" if told else f"{word} fixed by {names}")
    return ", ".join(told)

"""Finds repeated structure: groups, or names alone, that differ only in their numbers become one row with ranges.

Pure functions of names and counts; they know no architecture and print nothing.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Item", "Name", "Numbers", "Row", "Token", "folded_names", "name_of", "rows_of"]

_LEAST = 3
"""The least number of groups in a collapsed row, while all rows fit: of two blocks, a reader sees both."""

_LEVELS = ((True, False), (False, False), (False, True))
"""(equal channels, text before the numbers may differ): tried in turn until the rows are few enough."""


@dataclass(frozen=True)
class Numbers:
    """The numbers that stand at one place of a row's names, one for each member along an axis of the row."""

    axis: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class _Offset:
    """A number, counted from the one at the place that varies."""

    distance: int


Token = str | int | Numbers | _Offset
Name = tuple[Token, ...]
"""A layer's name, its numbers apart: ("layers.", 3, ".mlp")."""


@dataclass(frozen=True)
class Item:
    """A group as the tables see it.

    Attributes:
        name: the group's name.
        kind: how it connects its layers.
        channels: its number of variables.
        producers: the layers that write it.
        consumers: the layers that read it.
        pairs: number of its pairs.
    """

    name: str
    kind: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    pairs: int


@dataclass(frozen=True)
class Row:
    """Groups of the same kind whose layers' names differ only in their numbers, in step along each axis.

    Attributes:
        members: the groups; the last axis of `producers` and `consumers` moves slowest.
        producers: the names of the layers that write them.
        consumers: the names of the layers that read them.
        sizes: number of places along each axis, by its number.
    """

    members: tuple[Item, ...]
    producers: tuple[Name, ...]
    consumers: tuple[Name, ...]
    sizes: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """Number of pairs of all members."""
        return sum(item.pairs for item in self.members)

    def expanded(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Yields the layers that each member's producers and consumers stand for, read from the row's names alone."""
        for places in itertools.product(*(range(size) for size in reversed(self.sizes))):
            at = places[::-1]
            yield tuple(_spelled(name, at) for name in self.producers), tuple(_spelled(name, at) for name in self.consumers)


def name_of(text: str) -> Name:
    """Returns a name with its numbers apart; a number with a leading zero stays text.

    Example:
        >>> name_of("layers.10.fc01")
        ('layers.', 10, '.fc', '01')
    """
    parts = filter(None, re.split(r"([0-9]+)", text))
    return tuple(int(part) if part[0] in "123456789" or part == "0" else part for part in parts)


def _spelled(name: Name, at: Sequence[int]) -> str:
    """Returns the name of the member that stands `at` these places of the axes."""
    return "".join(str(token.values[at[token.axis]] if isinstance(token, Numbers) else token) for token in name)


def rows_of(items: Sequence[Item], most: int | None = None) -> tuple[Row, ...]:
    """Collapses groups into rows.

    Args:
        items: the groups.
        most: number of rows that are few enough; None: every group is a row. While there are more, rows of two groups are
            made too, then groups of different numbers of channels go together, then numbers behind different texts, as in
            bn1 and conv2.

    Returns:
        Rows in the order of their first groups; each group is in exactly one.
    """
    alone = [_alone(index, item) for index, item in enumerate(items)]
    found = alone
    for equal, wide in _LEVELS if most is not None else ():
        heads = [(item.kind, item.pairs, len(item.producers), item.channels if equal else None) for item in items]
        least = _LEAST if equal else 2
        found = _collapsed([dataclasses.replace(entry, head=heads[entry.members[0]]) for entry in alone], least, wide)
        if most is not None and len(found) <= most:
            break
    return tuple(_row(entry, items) for entry in found)


def folded_names(names: Sequence[Name]) -> tuple[tuple[Name, int], ...]:
    """Collapses one list of names; returns each name, with ranges, and how many of the list it stands for."""
    entries = [_Entry(None, (name,), (0,), (index,), _sizes(name)) for index, name in enumerate(names)]
    return tuple((entry.names[0], len(entry.members)) for entry in _collapsed(entries, 2, wide=False))


@dataclass(frozen=True)
class _Entry:
    """What may be merged: its names, which of them lead, the indices of its members, and the sizes of its axes."""

    head: object
    names: tuple[Name, ...]
    leads: tuple[int, ...]
    members: tuple[int, ...]
    sizes: tuple[int, ...]


def _alone(index: int, item: Item) -> _Entry:
    """Returns a group on its own; its first producer and its first consumer lead."""
    producers, consumers = (tuple(map(name_of, layers)) for layers in (item.producers, item.consumers))
    leads = ([0] if producers else []) + ([len(producers)] if consumers else [])
    return _Entry(None, producers + consumers, tuple(leads), (index,), ())


def _row(entry: _Entry, items: Sequence[Item]) -> Row:
    """Returns an entry as a row."""
    members = tuple(items[index] for index in entry.members)
    count = len(members[0].producers)
    return Row(members, entry.names[:count], entry.names[count:], entry.sizes)


def _sizes(name: Name) -> tuple[int, ...]:
    """Returns the sizes of the axes that a name has already."""
    found = {token.axis: len(token.values) for token in name if isinstance(token, Numbers)}
    return tuple(found.get(axis, 1) for axis in range(max(found, default=-1) + 1))


def _collapsed(entries: Sequence[_Entry], least: int, wide: bool) -> list[_Entry]:
    """Merges entries until none go together, the largest rows first; in the order of the first members."""
    current = list(entries)
    while True:
        merged = _merged_once(current, least, wide)
        if len(merged) == len(current):
            return merged
        current = merged


def _merged_once(entries: Sequence[_Entry], least: int, wide: bool) -> list[_Entry]:
    """Merges along one axis more."""
    shapes: dict[tuple[object, tuple[Name, ...], tuple[int, ...]], dict[int, int]] = {}
    places: dict[object, int] = {}
    for index, entry in enumerate(entries):
        for place, number, names in _shapes(entry, wide):
            shape = (entry.head, names, entry.sizes)
            places.setdefault(shape, -place)  # of equal rows, the one along the innermost number
            shapes.setdefault(shape, {}).setdefault(number, index)
    queue = [(-len(found), places[shape], order, shape) for order, (shape, found) in enumerate(shapes.items()) if len(found) > 1]
    heapq.heapify(queue)
    left, result = dict(enumerate(entries)), []
    while queue:
        size, place, order, key = heapq.heappop(queue)
        found = {number: index for number, index in shapes[key].items() if index in left}
        if len(found) < 2 or sum(len(left[index].members) for index in found.values()) < least:
            continue
        if len(found) < -size:
            heapq.heappush(queue, (-len(found), place, order, key))
            continue
        result.append(_joined(key[1], {number: left.pop(found[number]) for number in sorted(found)}))
    return sorted([*result, *left.values()], key=lambda entry: min(entry.members))


def _joined(names: Sequence[Name], entries: Mapping[int, _Entry]) -> _Entry:
    """Returns entries, by the number in which they differ, as one; the new axis is the last."""
    first = next(iter(entries.values()))
    axis = len(first.sizes)

    def widened(token: Token) -> Token:
        """Returns the numbers of all entries for a number that is counted from theirs."""
        return Numbers(axis, tuple(number + token.distance for number in entries)) if isinstance(token, _Offset) else token

    return dataclasses.replace(
        first,
        names=tuple(tuple(map(widened, name)) for name in names),
        members=tuple(itertools.chain.from_iterable(entry.members for entry in entries.values())),
        sizes=(*first.sizes, len(entries)),
    )


def _shapes(entry: _Entry, wide: bool) -> Iterator[tuple[int, int, tuple[Name, ...]]]:
    """Yields, for each number of a leading name, its place, its value, and all names with this number taken out.

    It is taken out of the names that begin as the leading one does; if `wide`, also of all that have a number at this place.
    """
    for lead in entry.leads:
        stem = entry.names[lead]
        for place, number in enumerate(stem):
            if isinstance(number, int):
                yield place, number, tuple(_counted_from(number, name, stem[:place]) for name in entry.names)
                if wide:
                    yield place, number, tuple(_counted_from(number, name, name[:place]) for name in entry.names)


def _counted_from(number: int, name: Name, stem: Name) -> Name:
    """Returns a name whose number behind the stem is counted from `number`; a name without, as it is."""
    place = len(stem)
    there = name[place] if len(name) > place else None
    if isinstance(there, int) and name[:place] == stem:
        return (*stem, _Offset(there - number), *name[place + 1 :])
    return name

"""Sentences of `Plan.why`, and how those of layers of equal structure become one: pure functions of names and counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .rows import number_words, some_names
from .why_rows import WhyLayer, WhyRow

__all__ = ["Block", "Count", "Names", "Sentence", "blocks_of", "layer_sentences", "sentence_words"]

_LEAST = 3
"""The least number of layers in a block while all lines fit: of two layers, a reader sees both."""

_MOST_NAMES = 4
_MOST_LAYERS = 8
"""Names in a sentence and in a heading, those that differ in their numbers together: choices."""

_HELD = re.compile(r"(?P<group>\S+): (?P<count>[\d,]+) scales? held, (?P<reason>.*)", re.DOTALL)


@dataclass(frozen=True)
class Count:
    """A number in a sentence, with its noun; of several layers all that occur.

    Attributes:
        numbers: what was counted.
        noun: in the singular; "" for none.
    """

    numbers: tuple[int, ...]
    noun: str = ""


@dataclass(frozen=True)
class Names:
    """Names of layers, modules or groups in a sentence.

    Attributes:
        names: in order, each once.
        module: the module of the layer that the sentence is about, from which they are counted where all lie in it; "" for none.
    """

    names: tuple[str, ...]
    module: str = ""


@dataclass(frozen=True)
class Sentence:
    """One line about a layer.

    Attributes:
        side: "out", "in", "held", or "" of its heading.
        parts: text, counts and names in turn.
    """

    side: str
    parts: tuple[str | Count | Names, ...]

    def key(self, counts: bool) -> tuple[object, ...]:
        """Returns the sentence without its names, and, unless `counts`, without its counts: equal for layers alike."""
        return (self.side, *(_key(part, counts) for part in self.parts))

    @property
    def is_relative(self) -> bool:
        """Whether it has a name that can be told from the layer's own module."""
        return any(isinstance(part, Names) and _inside(part) is not None for part in self.parts)


@dataclass(frozen=True)
class Block:
    """Layers about which the same sentences hold, but for names and numbers.

    Attributes:
        layers: their names.
        sentences: with the names and numbers of all of them.
    """

    layers: tuple[str, ...]
    sentences: tuple[Sentence, ...]


def _key(part: str | Count | Names, counts: bool) -> object:
    """Returns what has to be equal for two parts to become one; names in the layer's own module count, others do not."""
    if isinstance(part, Names):
        return ("names", _inside(part))
    if isinstance(part, Count):
        return ("count", part.noun, part.numbers if counts else None)
    return part


def _inside(part: Names) -> tuple[str, ...] | None:
    """Returns the names as seen from the layer's module; None where one lies outside."""
    if part.module and all(name.startswith(part.module) for name in part.names):
        return tuple(name.removeprefix(part.module) for name in part.names)
    return None


# ---------------------------------------------------------------- one layer


def layer_sentences(layer: WhyLayer, rows: Iterable[WhyRow]) -> tuple[Sentence, ...]:
    """Returns all that is known of one layer: the heading, both sides, and what is held now."""
    name = layer.layer
    if layer.note:
        heading: tuple[str | Count | Names, ...] = (Names((name,)), f": {layer.note}")
    else:
        out, into = Count((layer.channels_out,), "channel"), Count((layer.channels_in,))
        heading = (Names((name,)), ": ", out, " out, ", into, " in")
    found = [Sentence("", heading)]
    for side, scales in (("out", layer.scales_out), ("in", layer.scales_in)):
        found += (Sentence(side, parts) for parts in _sides([row for row in rows if row.side == side], scales, _module(name)))
    return (*found, *(Sentence("held", tuple(_held(text))) for text in layer.held))


def _module(layer: str) -> str:
    """Returns the name of the module that holds a layer, with its dot; "" at the top."""
    return layer[: layer.rfind(".") + 1]


def _sides(rows: Sequence[WhyRow], scales: int, module: str) -> Iterator[tuple[str | Count | Names, ...]]:
    """Yields the rows of one side of a layer in sentences; `scales`: how many free scales this side carries."""
    moving = sum(row.channels for row in rows if row.kind in ("free", "tied"))
    sharing = list(dict.fromkeys(_cause(row, module) for row in rows if row.kind == "tied" and row.tied_to in (row.own, "")))
    if sharing:
        causes = [part for cause in sharing for part in ("; ", *cause)][1:]
        yield (Count((moving,)), " channels share ", Count((scales,), "scale"), ": ", *causes)
    for row in rows:
        channels = Count((row.channels,))
        if row.kind == "free":
            if not sharing:
                yield (channels, " free")
        elif row.kind != "tied":
            reason = f": {row.reason}" if row.reason else ""
            yield (channels, f" fixed by {_who(row)}", *_cause(row, module), reason)
        elif row.tied_to not in (row.own, ""):
            layer, _, side = row.tied_to.rpartition(" ")
            yield (channels, " carry the scales of ", Names((layer,), module), f" {side}: ", *_cause(row, module))


def _who(row: WhyRow) -> str:
    """Returns the kind of what fixed channels, in words; "" for an operator."""
    return {"input": "the ", "output": "the ", "option": "an option, "}.get(row.kind, "")


def _cause(row: WhyRow, module: str) -> tuple[str | Names, ...]:
    """Returns an operator with the user's line, as "sum, model.py:12"."""
    joint = " " if row.kind == "input" else ", "
    graph = (f" ({row.graph})",) if row.graph else ()
    if not row.source and row.module:
        return (f"{row.operator}{joint if row.operator else ''}in ", Names((row.module,), module), *graph)
    return (joint.join(filter(None, [row.operator, row.source])), *graph)


def _held(text: str) -> Iterator[str | Count | Names]:
    """Yields the parts of a sentence about held scales."""
    found = _HELD.fullmatch(text)
    if found is None:
        yield text
        return
    yield Names((found["group"],))
    yield ": "
    yield Count((int(found["count"].replace(",", "")),), "scale")
    yield f" held, {found['reason']}"


# ---------------------------------------------------------------- many layers


def blocks_of(told: Sequence[tuple[str, Sequence[Sentence]]], most: int | None) -> tuple[Block, ...]:
    """Puts layers together about which the same sentences hold, but for the names.

    Args:
        told: layers with their sentences, in order.
        most: number of lines that are few enough; None: each layer stays by itself. While there are more, two layers go together
            too, and layers of different numbers of channels.

    Returns:
        Blocks in the order of their first layers; each layer is in exactly one.
    """
    if most is None:
        return tuple(Block((layer,), tuple(sentences)) for layer, sentences in told)
    short = [(layer, _joined_in_one(sentences)) for layer, sentences in told]
    found: list[Block] = []
    for counts, least in ((True, _LEAST), (False, 2)):
        found = _grouped(short, counts, least)
        if sum(len(block.sentences) for block in found) <= most:
            break
    return tuple(found)


def _grouped(told: Sequence[tuple[str, Sequence[Sentence]]], counts: bool, least: int) -> list[Block]:
    """Groups layers by their sentences; fewer than `least` stay by themselves."""
    alike: dict[object, list[int]] = {}
    for place, (_, sentences) in enumerate(told):
        alike.setdefault(tuple(sentence.key(counts) for sentence in sentences), []).append(place)
    groups = [part for places in alike.values() for part in ([places] if len(places) >= least else [[k] for k in places])]
    return [
        Block(tuple(told[k][0] for k in places), tuple(map(_joined, zip(*(told[k][1] for k in places), strict=True))))
        for places in sorted(groups)
    ]


def _joined_in_one(sentences: Sequence[Sentence]) -> tuple[Sentence, ...]:
    """Puts those sentences about one layer together that differ in a name and a number, as of the parts of a concatenation."""
    alike: dict[object, list[Sentence]] = {}
    for sentence in sentences:
        alike.setdefault(sentence.key(False) if sentence.side in ("out", "in") else sentence, []).append(sentence)
    return tuple(Sentence(same[0].side, tuple(_summed(same))) for same in alike.values())


def _summed(same: Sequence[Sentence]) -> Iterator[str | Count | Names]:
    """Yields the parts of sentences about one layer as those of one sentence, the channels added up."""
    for parts in zip(*(one.parts for one in same), strict=True):
        numbers = [part.numbers[0] for part in parts if isinstance(part, Count)]
        first = parts[0]
        yield Count((sum(numbers),), first.noun) if isinstance(first, Count) else _all_of(parts)


def _joined(same: Sequence[Sentence]) -> Sentence:
    """Returns sentences of equal keys as one, with all names and all numbers."""
    return Sentence(same[0].side, tuple(_all_of(parts) for parts in zip(*(one.parts for one in same), strict=True)))


def _all_of(parts: Sequence[str | Count | Names]) -> str | Count | Names:
    """Returns parts of equal keys as one."""
    first = parts[0]
    if isinstance(first, Count):
        numbers = (number for part in parts if isinstance(part, Count) for number in part.numbers)
        return Count(tuple(sorted(set(numbers))), first.noun)
    if isinstance(first, Names):
        found = [part for part in parts if isinstance(part, Names)]
        modules = {part.module for part in found}
        if len(modules) > 1 and _inside(first) is not None and all(_inside(part) == _inside(first) for part in found):
            return first  # the same names in each layer's own module
        names = tuple(dict.fromkeys(name for part in found for name in part.names))
        return Names(names, first.module if len(modules) == 1 else "")
    return first


def sentence_words(sentence: Sentence, relative: bool) -> str:
    """Returns a sentence as text.

    Args:
        sentence: about one layer or many.
        relative: whether names in the layer's own module begin with a dot for it, and long lists end in a count.
    """
    most = _MOST_NAMES if sentence.side else _MOST_LAYERS
    return "".join(_words(part, relative, most) for part in sentence.parts)


def _words(part: str | Count | Names, relative: bool, most: int) -> str:
    """Returns one part of a sentence as text."""
    if isinstance(part, Count):
        ends = list(dict.fromkeys((part.numbers[0], part.numbers[-1])))
        return number_words(ends) + (f" {part.noun}{'' if ends == [1] else 's'}" if part.noun else "")
    if isinstance(part, Names):
        inside = _inside(part) if relative else None
        if inside is not None:
            return ", ".join(f".{name}" for name in inside)
        return some_names(part.names, most) if relative else ", ".join(part.names)
    return part

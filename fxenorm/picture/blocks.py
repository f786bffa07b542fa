"""Finds modules of equal structure whose names differ in their numbers, so that they can be drawn as one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..text.repeats import folded_names, name_of
from ..text.rows import name_words

__all__ = ["Alike", "alike"]

_LEAST_LAYERS, _LEAST_WITHIN = 2, 3
"""A numbered module with fewer layers gets no frame of its own; the second number: within another one. Choices."""


@dataclass(frozen=True)
class Alike:
    """Layers that are drawn as one.

    Attributes:
        layers: their names; one, where nothing is repeated.
        name: the name in words, repeated numbers as ranges.
        block: the words with which the name of the block around it begins; "" where there is none.
        copies: the number of blocks that it stands for.
    """

    layers: tuple[str, ...]
    name: str
    block: str = ""
    copies: int = 1


@dataclass
class _Module:
    """A place in the tree of names: a layer, a module with children, or both."""

    layer: str = ""
    children: dict[str, _Module] = field(default_factory=dict)
    structure: int = 0
    count: int = 0


def alike(layers: Sequence[str], uses: Mapping[str, Hashable], *, merge: bool) -> list[Alike]:
    """Puts together the layers that stand at equal places in modules of equal structure.

    Modules are of equal structure where they stand side by side, their names differ only in their numbers, and the layers of
    equal names inside are used alike.

    Args:
        layers: names of layers.
        uses: by layer, a value that is equal for layers that are used alike.
        merge: whether to put any together; else every layer is by itself, with its block.

    Returns:
        Every layer exactly once.
    """
    root = _Module()
    for layer in layers:
        place = root
        for part in layer.split("."):
            place = place.children.setdefault(part, _Module())
        place.layer = layer
    _number(root, uses, {})
    return list(_walk([root], "", "", 1, merge))


def _number(module: _Module, uses: Mapping[str, Hashable], known: dict[Hashable, int]) -> None:
    """Gives modules of equal structure equal numbers, and counts their layers."""
    for child in module.children.values():
        _number(child, uses, known)
    inside = tuple(sorted((name, child.structure) for name, child in module.children.items()))
    module.structure = known.setdefault(
        (uses.get(module.layer) if module.layer else None, bool(module.layer), inside), len(known)
    )
    module.count = bool(module.layer) + sum(child.count for child in module.children.values())


def _walk(copies: Sequence[_Module], name: str, block: str, count: int, merge: bool) -> Iterator[Alike]:
    """Yields the layers inside some modules of equal structure."""
    if copies[0].layer:
        yield Alike(tuple(copy.layer for copy in copies), name, block, count)
    for together in _side_by_side(copies[0], merge):
        inner = [copy.children[part] for copy in copies for part in together]
        path = f"{name}.{_words(together)}" if name else _words(together)
        least = _LEAST_WITHIN if block else _LEAST_LAYERS
        is_block = len(together) > 1 or (_is_numbered(together[0]) and inner[0].count >= least)
        if count == 1 and inner[0].children and is_block:
            yield from _walk(inner, path, path, len(together), merge)
        else:
            yield from _walk(inner, path, block, count, merge)


def _side_by_side(module: _Module, merge: bool) -> list[list[str]]:
    """Returns the children's names, those of one structure together."""
    found: dict[Hashable, list[str]] = {}
    for part, child in module.children.items():
        pattern = tuple(0 if isinstance(token, int) else token for token in name_of(part))
        key: Hashable = (pattern, child.structure) if merge and _is_numbered(part) else part
        found.setdefault(key, []).append(part)
    return list(found.values())


def _is_numbered(part: str) -> bool:
    """Whether a part of a name has a number that counts."""
    return any(isinstance(token, int) for token in name_of(part))


def _words(parts: Sequence[str]) -> str:
    """Returns parts of names in words, as "denselayer{1..6}"."""
    return ",".join(name_words(name) for name, _ in folded_names([name_of(part) for part in parts]))

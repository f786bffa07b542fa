"""The origins of zeros that no equation tells: model inputs, constants, and operators whose result carries no scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import fx

from ...field import FIXED, Ids, ScaleField
from ..graph.arguments import flat

__all__ = ["NOBODY", "ZeroSources"]

NOBODY = 1 << 40
"""Above all numbers of origins, one a node: stands for entries that are not zero."""

Shown = int | ScaleField | list[ScaleField]
"""One origin, or by entry the origins as the ids of a field; a list for a call of several outputs."""


class ZeroSources:
    """Follows the zeros of one graph.

    Args:
        number: numbers a model input or constant as an origin.
    """

    def __init__(self, number: Callable[[fx.Node], int]) -> None:
        self._number = number
        self._of: dict[fx.Node, Shown] = {}

    def start(self, node: fx.Node) -> None:
        """Notes that a model input, buffer or constant stays as it is."""
        self._of[node] = self._number(node)

    def read(self, nodes: Iterable[fx.Node]) -> int | None:
        """Who made the first of these values zero that is zero somewhere."""
        known = (_first(self._of[node]) for node in nodes if node in self._of)
        return next((origin for origin in known if origin != NOBODY), None)

    def along(self, nodes: Iterable[fx.Node]) -> Ids | None:
        """Who made the same value zero, by place on the one axis along which that differs; None where it does not."""
        shown = next((self._of[node] for node in nodes if node in self._of), None)
        if not isinstance(shown, ScaleField):
            return None
        ids = shown.terms[0][1]
        return ids.ravel() if sum(size > 1 for size in ids.shape) == 1 else None

    def as_field(self, node: fx.Node, shape: tuple[int, ...]) -> ScaleField:
        """Returns the origins of a value's zeros as the ids of a field."""
        shown = self._of.get(node, NOBODY)
        if isinstance(shown, ScaleField):
            return shown
        return ScaleField(shape, ((1, np.full((1,) * len(shape), _first(shown), dtype=np.int64)),))

    def differ(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether several origins made these values zero."""
        shown = [self._of[node] for node in nodes if node in self._of]
        return any(not isinstance(item, int) for item in shown) or len(set(map(_first, shown))) > 1

    def step(
        self, node: fx.Node, value: Any, own: int | None, source: int | None, barrier: bool, by_entry: Callable[[], Any]
    ) -> None:
        """Notes who made the value of a call zero.

        Args:
            node: the call.
            value: the fields of its outputs.
            own: the call's own origin.
            source: who made its arguments zero.
            barrier: whether it forces an argument to zero that is not yet.
            by_entry: gives the origins by entry, where several made the arguments zero and the call moves entries; else None.
        """
        values = list(flat(value))
        if not any(map(_somewhere_zero, values)):
            return
        found = own if barrier or source is None else source
        shown = by_entry() if found is not own else None
        parts: list[Any] = list(shown) if isinstance(shown, (list, tuple)) else [shown]
        if len(parts) == len(values) and all(map(_tells, parts, values)):
            self._of[node] = parts if isinstance(shown, (list, tuple)) else parts[0]
        elif found is not None:
            self._of[node] = found

    def item(self, node: fx.Node, source: fx.Node, position: int) -> None:
        """Notes that `node` is one output of the call `source`."""
        shown = self._of.get(source)
        if shown is not None:
            self._of[node] = shown[position] if isinstance(shown, list) else shown

    def write(self, members: Iterable[fx.Node], node: fx.Node) -> None:
        """Notes that the result of `node` is written to memory that others show."""
        if node in self._of:
            for member in members:
                self._of.setdefault(member, _first(self._of[node]))


def _first(shown: Shown) -> int:
    """Returns the first of the origins, by number."""
    while isinstance(shown, list):
        shown = shown[0]
    if isinstance(shown, int):
        return shown
    known = shown.terms[0][1]
    return int(known.min())


def _plain(shown: Any) -> bool:
    """Whether it says of each entry who made it zero."""
    return isinstance(shown, ScaleField) and len(shown.terms) == 1 and shown.terms[0][0] == 1


def _tells(shown: Any, value: Any) -> bool:
    """Whether it says of each entry who made it zero, and names somebody wherever the value is zero.

    A law that takes the field of one argument, as those of clamp and where do, names nobody where another argument is held.
    """
    if not _plain(shown):
        return False
    unnamed = shown.terms[0][1] == NOBODY
    if not isinstance(value, ScaleField) or not unnamed.any():
        return True
    still = np.ones((1,) * len(value.shape), dtype=bool)
    for _, ids in value.terms:
        still = still & (ids == FIXED)
    return not bool((still & unnamed).any())


def _somewhere_zero(value: Any) -> bool:
    """Whether a part of the field is zero for certain."""
    return isinstance(value, ScaleField) and (value.is_zero or any(FIXED in ids for _, ids in value.terms))

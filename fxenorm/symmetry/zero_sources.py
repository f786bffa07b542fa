"""Who made a field zero where no equation says so: model inputs, constants, and operators whose result carries no scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx

from ..field import FIXED, ScaleField
from .arguments import flat

__all__ = ["ZeroSources"]


class ZeroSources:
    """Follows the zeros of one graph.

    Args:
        number: numbers a model input or constant as an origin.
    """

    def __init__(self, number: Callable[[fx.Node], int]) -> None:
        self._number = number
        self._of: dict[fx.Node, int] = {}

    def start(self, node: fx.Node) -> None:
        """A model input, buffer or constant stays as it is."""
        self._of[node] = self._number(node)

    def read(self, nodes: Iterable[fx.Node]) -> int | None:
        """Who made the first of these values zero that is zero somewhere."""
        return next((self._of[node] for node in nodes if node in self._of), None)

    def step(self, node: fx.Node, value: Any, own: int | None, source: int | None, barrier: bool) -> None:
        """Note who made the value of a call zero.

        Args:
            node: the call.
            value: the fields of its outputs.
            own: the call's own origin.
            source: who made its arguments zero.
            barrier: whether it forces an argument to zero that is not yet.
        """
        if not any(_somewhere_zero(item) for item in flat(value)):
            return
        found = own if barrier or source is None else source
        if found is not None:
            self._of[node] = found

    def write(self, members: Iterable[fx.Node], node: fx.Node) -> None:
        """What `node` computes is written to memory that others show."""
        if node in self._of:
            for member in members:
                self._of.setdefault(member, self._of[node])


def _somewhere_zero(value: Any) -> bool:
    """Whether a part of the field is zero for certain."""
    return isinstance(value, ScaleField) and (value.is_zero or any(bool((ids == FIXED).any()) for _, ids in value.terms))

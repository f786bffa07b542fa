"""The causes of zero fields that no equation tells: model inputs, constants, options, operators without a scale."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...field import Ids
from ..account import Kind

__all__ = ["Causes"]


@dataclass
class Causes:
    """The notes of a walk on its origins, by number.

    Attributes:
        given: model inputs and constants.
        by_option: calls whose law an option changed.
        held_by: by call, the origin that made an argument of it zero.
        held_along: by call, the same by place on one axis, where that differs.
        runs: for each graph, its mode and its first origin.
    """

    given: set[int] = field(default_factory=set)
    by_option: set[int] = field(default_factory=set)
    held_by: dict[int, int] = field(default_factory=dict)
    held_along: dict[int, Ids] = field(default_factory=dict)
    runs: list[tuple[str, int]] = field(default_factory=list)

    def kind(self, number: int, operator: str, reason: str) -> Kind:
        """Returns the kind of an origin that makes a field zero."""
        if operator == "output":
            return "output"
        if operator == "exclude" or number in self.by_option:
            return "option"
        return "input" if number in self.given and not reason else "barrier"

    def source(self, number: int, reason: str) -> int:
        """Returns the source of a zero that this origin imposes: an origin that only ties its arguments hands on theirs."""
        return number if reason or number in self.by_option else self.held_by.get(number, number)

    def graph(self, number: int, second: int | None) -> str:
        """Returns the graph of an origin in words, "" for the first; `second`: the first origin of the second size."""
        if second is not None and number >= second:
            return "at another size"
        run = max((k for k, (_, start) in enumerate(self.runs) if start <= number), default=0)
        mode = self.runs[run][0] if self.runs else ""
        if run == 0:
            return ""
        return f"in {mode} mode" if mode != self.runs[0][0] else "on another path"

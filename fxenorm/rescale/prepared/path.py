"""`Path`: which code carries out a step, and why it is not the fastest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Path"]


@dataclass(frozen=True)
class Path:
    """The code that carries out a step.

    Attributes:
        calls: how many calls of compiled code it takes; 0: it is plain PyTorch, which may call compiled code for its parts.
        why: why it is not one call, each reason once.

    Example:
        >>> print(Path(1), "|", Path.of(2, ["its entries have an offset"]))
        one compiled call | two compiled calls (its entries have an offset)
    """

    calls: int
    why: tuple[str, ...] = ()

    @classmethod
    def of(cls, calls: int, why: Iterable[str]) -> Path:
        """Returns a path with each of its reasons once."""
        return cls(calls, tuple(dict.fromkeys(why)))

    def __str__(self) -> str:
        """Returns it in words."""
        words = ("plain PyTorch", "one compiled call", "two compiled calls")[self.calls]
        return f"{words} ({'; '.join(self.why)})" if self.why else words

"""The fields that contractions find on both sides of a weight: the channels that it reads and those that it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .scale_field import Ids, ScaleField, Term

__all__ = ["ChannelEnds", "End"]


@dataclass(frozen=True, eq=False)
class End:
    """One side of a weight, or of a part of it, at its first use.

    Attributes:
        parameter: the weight's name.
        side: whether these channels are read or written.
        size: number of channels.
        terms: their fields, as terms with ids of shape (size,) or (1,).
        origin: position of the node that uses the weight.
    """

    parameter: str
    side: str
    size: int
    terms: tuple[Term, ...]
    origin: int


@dataclass
class ChannelEnds:
    """The ends of all weights of a model, each side of each part of a weight once, over all uses and modes."""

    found: list[End] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)
    """Weights that were noted with all of their entries."""
    parts: set[tuple[str, bytes]] = field(default_factory=set)

    def new_part(self, name: str, own: ScaleField) -> bool:
        """Whether no entry of this part of the weight was noted; `own` is the part's field, of which the ids tell it."""
        ids = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(np.unique(ids) for _, ids in own.terms)]))
        key = (name, ids.tobytes())
        if key in self.parts:
            return False
        self.parts.add(key)
        return True

    def note(self, name: str, side: str, terms: Sequence[Term], sizes: Mapping[int, int], origin: int) -> None:
        """Notes the channels of one side of a weight.

        Args:
            name: the weight.
            side: "input" or "output".
            terms: the field that is read or written.
            sizes: by axis of the terms' ids, its size, for the axes that this side of the weight has; of the others, the first
                place is taken.
            origin: position of the node.
        """
        size = math.prod(sizes.values())
        found: list[Term] = []
        for coefficient, ids in terms:
            for axis in range(ids.ndim):
                if ids.shape[axis] > 1 and axis not in sizes:
                    ids = ids.take([0], axis=axis)
            shape = [sizes.get(axis, 1) for axis in range(ids.ndim)]
            flat: Ids = ids.ravel() if ids.size == 1 else np.broadcast_to(ids, shape).ravel()
            found.append((coefficient, flat))
        self.found.append(End(name, side, size, tuple(found), origin))

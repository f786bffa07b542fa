"""`ChannelFields`: channels' fields in graph order, as linear forms of the variables; they name what is held, no basis does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...field import Term
from ...kernels.program import ReduceProgram
from ..held import Mask
from .basis import Basis, Form
from .exponent_rows import term_sides

__all__ = ["ChannelFields"]


class ChannelFields:
    """Fields of channel ends, the last in graph order last; in front of them, the counted tensors' own exponents.

    Args:
        fields: by channel end, its terms over the plan's variables.
        program: the objective, over the places of `basis`.
        basis: of the variables that may move; None: all of them.
        fixed: (K,) places that stay at 0; None: none.
    """

    def __init__(
        self, fields: Sequence[tuple[Term, ...]], program: ReduceProgram, basis: Basis | None, fixed: Mask | None = None
    ) -> None:
        given = [terms if basis is None else basis.terms(terms) for terms in fields]
        own = [tuple(side) for block in program.blocks for side in term_sides(block, program.num_scales)]
        self._fields = [*own, *(terms for terms in given if terms)]
        self._in_plan = [None] * len(own) + [terms for terms, here in zip(fields, given, strict=True) if here]
        self._count = program.num_scales
        if fixed is not None and fixed.any():
            padded = np.append(fixed, False)
            self._fields = [tuple((c, np.where(padded[ids], -1, ids)) for c, ids in terms) for terms in self._fields]

    def ranks(self) -> tuple[NDArray[np.int64], Mask]:
        """Returns (K,) the place of the last field that is a multiple of each variable alone, else -1; (K,) who is in a sum."""
        rank = np.full(self._count, -1, dtype=np.int64)
        summed = np.zeros(self._count, dtype=bool)
        begin = 0
        for terms in self._fields:
            shape = np.broadcast_shapes(*(ids.shape for _, ids in terms))
            axes = [{axis for axis, size in enumerate(ids.shape) if size > 1} for _, ids in terms]
            if len(terms) > 1 and any(own != axes[0] for own in axes):
                for _, ids in terms:
                    summed[ids[ids >= 0]] = True
            else:
                together = np.stack([ids.reshape(-1) for _, ids in terms])
                several = (together >= 0).sum(axis=0)
                places = np.flatnonzero(several == 1)
                np.maximum.at(rank, together[:, places].max(axis=0), begin + places)
                others = together[:, several > 1]
                summed[others[others >= 0]] = True
            begin += math.prod(shape)
        return rank, summed

    def in_plan(self, rank: int) -> Form | None:
        """Returns the field of a rank that `ranks` gave, as a form of the plan's variables; None: it is a tensor's own."""
        for terms, plain in zip(self._fields, self._in_plan, strict=True):
            shape = np.broadcast_shapes(*(ids.shape for _, ids in terms))
            if 0 <= rank < math.prod(shape):
                return None if plain is None else form_at(plain, np.unravel_index(rank, shape))
            rank -= math.prod(shape)
        return None

    def last_moved(self, direction: NDArray[np.int64]) -> tuple[Form, Form | None] | None:
        """Returns the last field that a direction moves, as a form of the places and one of the plan's variables; None: none."""
        padded = np.append(direction, 0)
        for terms, plain in zip(reversed(self._fields), reversed(self._in_plan), strict=True):
            parts = [coefficient * padded[ids] for coefficient, ids in terms]
            if not any(part.any() for part in parts):
                continue
            values = sum(parts[1:], parts[0])
            moved = np.flatnonzero(values)
            if moved.size:
                place = np.unravel_index(moved[-1], values.shape)
                return form_at(terms, place), None if plain is None else form_at(plain, place)
        return None


def form_at(terms: Sequence[Term], place: Sequence[np.intp] | tuple[np.intp, ...]) -> Form:
    """Returns the form that a field has at one entry, with coprime coefficients, the first positive."""
    totals: dict[int, int] = {}
    for coefficient, ids in terms:
        index = tuple(min(int(axis), size - 1) for axis, size in zip(place, ids.shape, strict=True))
        variable = int(ids[index])
        if variable >= 0:
            totals[variable] = totals.get(variable, 0) + coefficient
    found = [(variable, value) for variable, value in sorted(totals.items()) if value]
    divisor = math.gcd(*(value for _, value in found)) if found else 1
    sign = -1 if found and found[0][1] < 0 else 1
    return tuple((variable, sign * value // divisor) for variable, value in found)

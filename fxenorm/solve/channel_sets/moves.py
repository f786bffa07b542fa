"""Moves of sets of variables, each of which leaves the entries alone that are stronger than those it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..max_balance.entries import Entries, Floats, Ids

__all__ = ["moves_of", "sparse_exponents"]

_ZERO = 1e-9
"""Sums of exponents below this are rounding errors: exponents are small integers, and moves small fractions of them."""


def sparse_exponents(entries: Entries, count: int) -> Any:
    """Returns (n, K) the exponents of entries, a sparse array by rows."""
    from scipy.sparse import csr_array

    some = entries.ids >= 0
    rows = np.repeat(np.arange(len(entries), dtype=np.int64), entries.ids.shape[1])[some.reshape(-1)]
    shape = (len(entries), count)
    return csr_array((entries.coefficients[some].astype(np.float64), (rows, entries.ids[some])), shape=shape)


def moves_of(entries: Entries, log_scales: Floats, variables: Any, sums: Sequence[Ids] = ()) -> Any:
    """Returns (K, variables) a basis of all moves of some variables, a sparse array by rows.

    The entries come from the largest down. Each that the moves left so far change uses one of them up, the one of the fewest
    variables, which goes into the basis; the others are joined with it so that they leave this entry alone. Where entries have
    two variables, moves are sets of channels that grow together, as trees do in Kruskal's algorithm.

    Args:
        entries: by their logs before any rescaling; other variables than those below stay where they are.
        log_scales: (K,) after which their order counts.
        variables: (V,) int64.
        sums: variables whose sum no move changes, by set: the basis has so many moves less.
    """
    from scipy.sparse import csr_array

    work = _Moves(variables.tolist())
    for ids in sums:
        work.fix([(k, 1) for k in ids.tolist()])
    work.used.clear()
    order = np.argsort(-entries.at(log_scales).logs, kind="stable")
    for ids, coefficients in zip(entries.ids[order].tolist(), entries.coefficients[order].tolist(), strict=True):
        if not work.left:
            break
        work.fix([(k, value) for k, value in zip(ids, coefficients, strict=True) if k >= 0])
    found = [*work.used, *work.left.values()]
    rows = [k for move in found for k in move]
    columns = [number for number, move in enumerate(found) for _ in move]
    values = [value for move in found for value in move.values()]
    return csr_array((np.array(values, dtype=np.float64), (rows, columns)), shape=(len(log_scales), len(found)))


class _Moves:
    """Moves that leave all entries alone which were given to `fix`, and those that were used up.

    Args:
        variables: each a move by itself at first.
    """

    def __init__(self, variables: list[int]) -> None:
        self.left: dict[int, dict[int, float]] = {k: {k: 1.0} for k in variables}
        self.used: list[dict[int, float]] = []
        self._moves_with: dict[int, set[int]] = {k: {k} for k in variables}

    def fix(self, entry: list[tuple[int, float]]) -> None:
        """Lets the moves that are left leave an entry alone, given by its variables and exponents."""
        changes: dict[int, float] = {}
        for k, value in entry:
            for number in self._moves_with.get(k, ()):
                changes[number] = changes.get(number, 0.0) + value * self.left[number][k]
        changes = {number: change for number, change in changes.items() if abs(change) > _ZERO}
        if not changes:
            return
        first = min(changes, key=lambda number: (len(self.left[number]), number))
        move = self.left.pop(first)
        self.used.append(move)
        for k in move:
            self._moves_with[k].discard(first)
        for number, change in changes.items():
            if number != first:
                self._add(number, move, -change / changes[first])

    def _add(self, number: int, move: dict[int, float], share: float) -> None:
        """Adds a share of a move to one that is left."""
        own = self.left[number]
        for k, value in move.items():
            total = own.get(k, 0.0) + share * value
            if abs(total) > _ZERO:
                own[k] = total
                self._moves_with[k].add(number)
            elif k in own:
                del own[k]
                self._moves_with[k].discard(number)

"""Totals of tables by the labels of their rows and columns, from products with the vectors of one label at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SideLabels"]

_MOST_PASSES = 4
"""Labels of the side of a table that has fewer of them: each is a pass over all tables. Most sides have one, the channels of one
group; where there are more it is another executor's."""


class SideLabels:
    """The labels on both sides of each table.

    Args:
        labels: (lines,) of each row and each column, in the order of `ProductTables`.
        lengths: (2 tables,) of the sides.
    """

    def __init__(self, labels: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self._starts = np.cumsum(lengths) - lengths
        self._ends = self._starts + lengths
        least, most = (reduce.reduceat(labels, self._starts) for reduce in (np.minimum, np.maximum))
        self._known: list[NDArray[np.int64]] = []
        self._places: list[NDArray[np.int64] | None] = []
        for side, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if least[side] == most[side]:
                self._known.append(least[side : side + 1])
                self._places.append(None)
            else:
                known, places = np.unique(labels[start:end], return_inverse=True)
                self._known.append(known)
                self._places.append(places)

    def keys(self, table: int, terms: tuple[int, int]) -> Tensor:
        """Returns (2, E) the combinations of a table's labels, as its totals are ordered; the first row is that of term 0."""
        rows, columns = self._known[2 * table : 2 * table + 2]
        found = np.stack([rows.repeat(columns.size), np.tile(columns, rows.size)])
        return torch.from_numpy(found[np.argsort(terms)])

    def log_totals(self, times: Callable[[Tensor], Tensor], inner: Tensor) -> dict[int, Tensor]:
        """Returns, by table, (E,) logs of its entries' totals times the numbers of their rows and columns.

        Args:
            times: the product of all tables with a vector.
            inner: (lines,) the numbers.

        Returns:
            The totals of the tables of which one side has few labels.
        """
        counts = np.array([known.size for known in self._known]).reshape(-1, 2)
        split, passes = counts.argmin(1), counts.min(1)
        chosen = np.flatnonzero(passes <= _MOST_PASSES)
        totals = {int(table): np.zeros(counts[table]) for table in chosen}
        for number in range(int(passes[chosen].max(initial=0))):
            masked = inner.clone()
            own = [table for table in totals if number < passes[table]]
            for table in own:
                side = 2 * table + int(split[table])
                places = self._places[side]
                if places is not None:
                    masked[self._starts[side] : self._ends[side]] *= torch.from_numpy(places == number)
            sums = (times(masked) * inner).numpy()
            for table in own:
                self._add(totals[table], sums, table, int(split[table]), number)
        with np.errstate(divide="ignore"):
            return {table: torch.from_numpy(np.log(total).reshape(-1)) for table, total in totals.items()}

    def _add(self, totals: NDArray[np.float64], sums: NDArray[np.float64], table: int, split: int, number: int) -> None:
        """Puts the sums of the side that is not split in their places."""
        other = 2 * table + 1 - split
        values, places = sums[self._starts[other] : self._ends[other]], self._places[other]
        found = values.sum() if places is None else np.bincount(places, values, self._known[other].size)
        (totals.T if split == 1 else totals)[number] = found

"""Entries of weights with their exponents, one row an entry, as the solver of p = inf takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Entries", "Floats", "Ids", "Mask", "distinct", "joined"]

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Entries:
    """Some entries: the logarithm of each moves by the sum of its coefficients times the log-scales of its variables.

    Attributes:
        ids: (n, T) variables, each once an entry, in rising order behind the places that hold none, which are -1.
        coefficients: (n, T) their exponents, 0 where there is no variable.
        logs: (n,) log |w| before any rescaling, natural.
    """

    ids: Ids
    coefficients: Ids
    logs: Floats

    def __len__(self) -> int:
        """Returns the number of entries."""
        return len(self.logs)

    @staticmethod
    def none() -> Entries:
        """Returns a list of entries that is empty."""
        return Entries(np.zeros((0, 1), dtype=np.int64), np.zeros((0, 1), dtype=np.int64), np.zeros(0))

    @staticmethod
    def of_terms(ids: Ids, coefficients: Ids, logs: Floats) -> Entries:
        """Returns entries from terms, of which several may be of one variable: their coefficients are added up.

        Args:
            ids: (n, T) variables in any order, -1 for none.
            coefficients: (n, T) their exponents.
            logs: (n,) log |w|.
        """
        ids, coefficients = np.where(coefficients == 0, -1, ids), np.where(ids < 0, 0, coefficients)
        if ids.shape[1] == 2 and bool(((ids[:, 0] != ids[:, 1]) | (ids[:, 0] < 0)).all()):
            # Nearly all entries: no sum to make, and an order of two.
            swapped = (ids[:, 0] > ids[:, 1])[:, None]
            return Entries(np.where(swapped, ids[:, ::-1], ids), np.where(swapped, coefficients[:, ::-1], coefficients), logs)
        for _ in range(2):  # the second time puts the places that a sum of 0 has left in front
            order = np.argsort(ids, axis=1, kind="stable")
            ids, coefficients = np.take_along_axis(ids, order, 1), np.take_along_axis(coefficients, order, 1)
            for column in range(1, ids.shape[1]):
                same = (ids[:, column] == ids[:, column - 1]) & (ids[:, column] >= 0)
                coefficients[:, column] += np.where(same, coefficients[:, column - 1], 0)
                coefficients[same, column - 1], ids[same, column - 1] = 0, -1
            ids[coefficients == 0] = -1
        return Entries(ids, coefficients, logs)

    def chosen(self, which: Mask | Ids) -> Entries:
        """Returns the entries at some places, or where a mask is set."""
        return Entries(self.ids[which], self.coefficients[which], self.logs[which])

    def shifts(self, log_scales: Floats) -> Floats:
        """(n,) by how much the logarithms move with these (K,) log-scales."""
        padded = np.append(log_scales, 0.0)
        return np.asarray((self.coefficients * padded[self.ids]).sum(axis=1))

    def at(self, log_scales: Floats) -> Entries:
        """Returns the same entries after a rescaling by (K,) log-scales."""
        return replace(self, logs=self.logs + self.shifts(log_scales))

    def reduced(self, free: Mask, log_scales: Floats) -> Entries:
        """Returns the same entries with free variables alone; the others have moved them by their (K,) log-scales."""
        if free.all():
            return self
        stays = (self.ids < 0) | ~np.append(free, False)[self.ids]
        logs = self.logs + self.shifts(np.where(free, 0.0, log_scales))
        return Entries.of_terms(np.where(stays, -1, self.ids), self.coefficients, logs)

    @property
    def movable(self) -> Mask:
        """(n,) whether an entry is finite and carries a variable."""
        return np.asarray((self.ids[:, -1] >= 0) & np.isfinite(self.logs))

    @property
    def row_keys(self) -> list[bytes]:
        """Returns a key of the exponents of each entry."""
        rows = np.ascontiguousarray(np.concatenate([self.ids, self.coefficients], axis=1))
        return [row.tobytes() for row in rows]


def joined(parts: Sequence[Entries]) -> Entries:
    """Returns entries put together, as wide as the widest of them."""
    width = max((part.ids.shape[1] for part in parts), default=1)

    def wide(rows: Ids, value: int) -> Ids:
        """Returns rows with places in front that hold nothing."""
        return np.pad(rows, ((0, 0), (width - rows.shape[1], 0)), constant_values=value)

    parts = parts or [Entries.none()]
    return Entries(
        np.concatenate([wide(part.ids, -1) for part in parts]),
        np.concatenate([wide(part.coefficients, 0) for part in parts]),
        np.concatenate([part.logs for part in parts]),
    )


def distinct(entries: Entries) -> Entries:
    """Returns the largest of all entries of each exponents."""
    if not len(entries):
        return entries
    columns = [*entries.ids.T, *entries.coefficients.T]
    order = np.lexsort((-entries.logs, *columns))
    rows = np.concatenate([entries.ids, entries.coefficients], axis=1)[order]
    first = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
    return entries.chosen(order[first])

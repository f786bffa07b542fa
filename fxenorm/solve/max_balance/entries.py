"""Entries of weights with their exponents, one row an entry, as the solver of p = inf takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Entries", "Floats", "Ids", "Mask", "distinct", "joined", "lacking"]

_MOST_KEYS = 2**62
"""Exponents that can be told apart by one integer each."""

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Entries:
    """Some entries: the logarithm of each moves by the sum of its coefficients times the log-scales of its variables.

    Attributes:
        ids: (n, T) variables, each once an entry, in rising order behind the places that hold none, which are -1.
        coefficients: (n, T) their exponents, 0 where there is no variable; in a sum of several powers times these.
        logs: (n,) log |w| before any rescaling, natural.
    """

    ids: Ids
    coefficients: Ids | Floats
    logs: Floats

    def __len__(self) -> int:
        """Returns the number of entries."""
        return len(self.logs)

    @staticmethod
    def none() -> Entries:
        """Returns a list of entries that is empty."""
        return Entries(np.zeros((0, 1), dtype=np.int64), np.zeros((0, 1), dtype=np.int64), np.zeros(0))

    @staticmethod
    def of_terms(ids: Ids, coefficients: NDArray[Any], logs: Floats) -> Entries:
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
            ids = np.take_along_axis(ids, order, 1)
            coefficients = np.take_along_axis(coefficients, order, 1)
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


def joined(parts: Sequence[Entries]) -> Entries:
    """Returns entries put together, as wide as the widest of them."""
    width = max((part.ids.shape[1] for part in parts), default=1)

    def wide(rows: NDArray[Any], value: int) -> NDArray[Any]:
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
    keys = _keys(entries)
    order = np.argsort(keys)
    own = keys[order]
    if bool((own[1:] == own[:-1]).any()):
        order = np.lexsort((-entries.logs, keys))
        own = keys[order]
    return entries.chosen(order[np.append(True, own[1:] != own[:-1])[: len(own)]])


def lacking(entries: Entries, known: Entries, slack: float) -> Entries:
    """Returns the entries whose exponents are those of no known one that is as large, but for a slack.

    Args:
        entries: some entries.
        known: others, one of each exponents.
        slack: a difference of natural logarithms that counts as none.
    """
    if not len(entries) or not len(known):
        return entries
    keys = _keys(joined([entries, known]))
    own, others = keys[: len(entries)], keys[len(entries) :]
    order = np.argsort(others)
    places = order[np.searchsorted(others, own, sorter=order).clip(max=len(others) - 1)]
    return entries.chosen((others[places] != own) | (entries.logs > known.logs[places] + slack))


def _keys(entries: Entries) -> Ids:
    """(n,) numbers that are equal where the exponents are."""
    rows = np.concatenate([entries.ids, entries.coefficients], axis=1)
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    least = rows.min(axis=0)
    sizes = [int(size) for size in rows.max(axis=0) - least + 1]
    if math.prod(sizes) > _MOST_KEYS:
        return np.asarray(np.unique(rows, axis=0, return_inverse=True)[1]).reshape(-1)
    keys = np.zeros(len(rows), dtype=np.int64)
    for column, first, size in zip(rows.T, least, sizes, strict=True):
        keys = keys * size + (column - first)
    return keys

"""N and P of moves of sets of variables, each relative to its own largest entry, and Newton steps in these coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..max_balance.entries import Entries, Floats, Ids
from ..sparse_coarse import factorised
from .moves import sparse_exponents

__all__ = ["SetSums", "summed"]

_DROPPED = 1e-10
"""Shares of a move's second derivative that the matrix does without: a step need not be better than that."""

_MANY, _COARSE, _KEPT = 100_000, 1e-3, 4
"""A matrix of more entries is factorised without those below the second, and with the third of each row on average, for factors
of all of it are full. These then precede the iterations of GMRES."""

_RESTART, _CYCLES = 20, 3
"""Such iterations between two restarts, and cycles of them at most; they end where five digits of the solution are there."""


def summed(p: float, entries: Entries) -> Entries:
    """Returns one entry for all of the same exponents: their p-norm."""
    if not len(entries):
        return entries
    columns = [*entries.ids.T, *entries.coefficients.T]
    order = np.lexsort(columns)
    rows = np.concatenate([entries.ids, entries.coefficients], axis=1)[order]
    starts = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1)))
    logs = entries.logs[order]
    largest = np.maximum.reduceat(logs, starts)
    sizes = np.diff(np.append(starts, len(logs)))
    totals = np.add.reduceat(np.exp(p * (logs - np.repeat(largest, sizes))), starts)
    return Entries(entries.ids[order[starts]], entries.coefficients[order[starts]], largest + np.log(totals) / p)


@dataclass(frozen=True)
class _Point:
    """The sums at some log-scales: (2, J) log N and log P and the largest entry of each; by entry and move its share of both."""

    log_sums: Floats
    largest: Floats
    shares: Floats


class SetSums:
    """F as a function of moves: the sum of exp(p x_e) over some entries.

    Args:
        p: the norm's exponent.
        entries: those that matter, one of each exponents.
        moves: (K, J) sparse, as `moves_of` returns them.

    Attributes:
        exponents: (n, K) of the entries, sparse.
    """

    def __init__(self, p: float, entries: Entries, moves: Any) -> None:
        from scipy.sparse import csc_array

        self.p, self.entries, self.moves = p, entries, moves
        self.exponents = sparse_exponents(entries, moves.shape[0])
        changes = csc_array(self.exponents @ moves)
        changes.eliminate_zeros()
        self._changes = changes

    @cached_property
    def _columns(self) -> Ids:
        """By entry and move that changes it, the number of the move."""
        return np.repeat(np.arange(self._changes.shape[1], dtype=np.int64), np.diff(self._changes.indptr))

    def _at(self, log_scales: Floats) -> _Point:
        """Returns the sums after a rescaling, in powers of p."""
        count, changes = self._changes.shape[1], self._changes
        logs = self.p * (self.entries.logs + self.exponents @ log_scales)[changes.indices]
        slots = self._columns + np.where(changes.data > 0, count, 0)
        largest = np.full(2 * count, -np.inf)
        np.maximum.at(largest, slots, logs)
        sums = np.bincount(slots, np.abs(changes.data) * np.exp(logs - largest[slots]), minlength=2 * count)
        with np.errstate(divide="ignore"):
            log_sums = largest + np.log(sums)
        largest = largest.reshape(2, count)
        shares = changes.data * np.exp(logs - largest.max(axis=0)[self._columns])
        return _Point(log_sums.reshape(2, count), largest, shares)

    def largest(self, log_scales: Floats) -> Floats:
        """(2, J) the logarithms of the largest entries that shrink and that grow with each move, after a rescaling; or -inf."""
        return self._at(log_scales).largest / self.p

    def log_curvatures(self, log_scales: Floats) -> Floats:
        """(J,) logs of the second derivatives by each move alone, by an exponent of 1; -inf where it changes no entry."""
        at = self._at(log_scales)
        squares = np.bincount(self._columns, self._changes.data * at.shares, minlength=self._changes.shape[1])
        with np.errstate(divide="ignore"):
            return np.asarray(at.largest.max(axis=0) + np.log(squares))

    def log_sums(self, log_scales: Floats) -> Floats:
        """(2, J) log N and log P of the moves, after a rescaling."""
        return self._at(log_scales).log_sums

    def imbalance(self, log_scales: Floats) -> float:
        """Returns the largest |log(N / P)| / p over all moves that change an entry; inf where one has one side alone."""
        negative, positive = self._at(log_scales).log_sums
        some = np.isfinite(negative) | np.isfinite(positive)
        return float(np.abs(negative[some] - positive[some]).max(initial=0.0)) / self.p

    def step(self, log_scales: Floats) -> Floats:
        """(K,) a Newton step, shortened so that no strong or weak entry may grow where all together should fall.

        Along a direction by which no p x_e moves by more than b, second derivatives change by e^b at most: log(1 + b) / b of the
        whole step lowers each such function.
        """
        at = self._at(log_scales)
        largest = at.largest.max(axis=0)
        some = np.isfinite(largest)
        negative, positive = np.exp(at.log_sums - np.where(some, largest, 0.0))
        change = self.moves @ self._solved(at, (negative - positive) / self.p)
        most = self.p * float(np.abs(self.exponents @ change).max(initial=0.0))
        return np.asarray(change * (np.log1p(most) / most if most > 0.1 else 1.0))

    def _solved(self, at: _Point, wanted: Floats) -> Floats:
        """(J,) the solution of the second derivative, row by row over the move's largest entry."""
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import LinearOperator, gmres

        changes = self._changes
        kept = np.where(np.abs(at.shares) > _DROPPED, at.shares, 0.0)
        weighted = csc_array((kept, changes.indices.copy(), changes.indptr.copy()), shape=changes.shape)
        weighted.eliminate_zeros()
        matrix = csc_array(weighted.T @ changes)
        front, coarse = matrix, matrix.nnz > _MANY
        if coarse:
            front = matrix.copy()
            sizes = np.abs(front.data)
            rank = max(0, len(sizes) - _KEPT * matrix.shape[0])
            front.data[sizes < max(_COARSE, np.partition(sizes, rank)[rank])] = 0.0
            front.eliminate_zeros()
        places = np.arange(matrix.shape[0], dtype=np.int64)
        # A move that changes nothing has a row of zeros.
        ridge = csc_array((np.full(len(places), 1e-13), (places, places)), shape=matrix.shape)
        factor = factorised(csc_array(front + ridge))
        found = factor.solve(wanted)
        if coarse:
            near = LinearOperator(matrix.shape, factor.solve, dtype=np.float64)
            found, _ = gmres(matrix, wanted, x0=found, M=near, atol=0.0, restart=_RESTART, maxiter=_CYCLES)
        return np.asarray(found)

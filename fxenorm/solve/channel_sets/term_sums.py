"""Moves of sets of variables for a sum of several terms: powers of any exponents, normalised sums, and functions of a user's.

Entries are in natural units: the logarithm of what an entry adds to the function, with its weight, and real exponents, q times
the integer ones. With these the exponent is p = 1. A normalised sum n log F is the least n F / t + n log t by one more variable,
log t, which each of its entries carries: it follows the others, and leaves a term of rank one to the second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..max_balance.entries import Entries, Floats, Ids, Mask
from ..max_balance.source import EntrySource
from ..sparse_coarse import factorised
from .moves import moves_of
from .solver import Kind
from .sums import SetSums

__all__ = ["TermKind", "TermSource", "TermSums"]

_MOST_PRODUCTS, _PRECISION = 500, 1e-10
"""Products with the second derivative for one step, and the residual to leave, relative to the first one."""

_HALVINGS = 30
"""How often a step that raises the function is halved: a function of a user's own may be steeper than its entries."""

_SLACK = 1e-13
"""What rounding leaves unknown of the function's value, as in `fxenorm.solve.convex`."""


class TermSource(EntrySource, Protocol):
    """A sum of terms over K variables; behind these, as variables K and on, the logarithms of m normalised sums.

    All vectors are of K + m numbers.
    """

    @property
    def is_sums(self) -> bool:
        """Whether it is nothing but sums of exponentials."""

    @property
    def totals(self) -> Floats:
        """(m,) the weight times the number of entries of each normalised sum."""

    def settled(self, log_scales: Floats) -> Floats:
        """Returns log-scales of which the last m are those that follow from the others."""

    def value(self, log_scales: Floats) -> float:
        """Returns the function at some log-scales."""

    def slope(self, log_scales: Floats) -> Floats:
        """Returns the derivative of all that is no sum of exponentials."""

    def sizes(self, log_scales: Floats) -> Floats:
        """Returns its second derivatives by variable, or estimates."""

    def bent(self, log_scales: Floats, direction: Floats) -> Floats:
        """Returns its second derivative times a direction."""


class TermSums(SetSums):
    """A sum of terms as a function of moves.

    Args:
        p: 1, or less for all powers that much smaller.
        entries: those that matter, one of each exponents.
        moves: (K + m, J) sparse.
        source: all that is no sum of exponentials.
    """

    def __init__(self, p: float, entries: Entries, moves: Any, source: TermSource) -> None:
        super().__init__(p, entries, moves)
        self._source = source
        self._last: tuple[Floats, Floats] | None = None

    def imbalance(self, log_scales: Floats) -> float:
        """Returns the largest |log(N / P)| over a move's mean exponent; of other terms, twice the largest change by a step."""
        if not self._source.is_sums:
            change = self._change(self._source.settled(log_scales))
            return 2.0 * float(np.abs(change).max(initial=0.0)) if np.isfinite(change).all() else np.inf
        negative, positive = self.log_sums(log_scales)
        some = np.isfinite(negative) | np.isfinite(positive)
        gap = np.abs(negative[some] - positive[some])
        sizes = np.logaddexp(negative, positive)[some] - self.log_curvatures(log_scales)[some]
        return float((gap * np.exp(sizes)).max(initial=0.0)) / self.p

    def step(self, log_scales: Floats) -> Floats:
        """(K + m,) a Newton step, shortened as `SetSums.step` does it, and until the function does not rise."""
        if self._source.is_sums:
            return super().step(log_scales)
        source, at = self._source, self._source.settled(log_scales)
        change = self._change(at)
        if not np.isfinite(change).all():
            return np.full_like(at, np.nan)
        most = float(np.abs(self.exponents @ change).max(initial=0.0))
        length = np.log1p(most) / most if most > 0.1 else 1.0
        before = source.value(at)
        allowed = before + _SLACK * (1e-3 + abs(before))
        for _ in range(_HALVINGS):
            ahead = source.settled(at + length * change)
            if source.value(ahead) <= allowed:
                return ahead - log_scales
            length /= 2
        return at - log_scales

    def _change(self, at: Floats) -> Floats:
        """(K + m,) the Newton step in the moves, of which normalised sums' logarithms take no part; kept for the last place."""
        if self._last is None or not np.array_equal(self._last[0], at):
            self._last = at, self._newton(at)
        return self._last[1]

    def _newton(self, at: Floats) -> Floats:
        """(K + m,) the Newton step, worked out."""
        source = self._source
        slope, sizes = self.moves.T @ source.slope(at), self.moves.power(2).T @ source.sizes(at)
        with np.errstate(divide="ignore"):
            halves = np.logaddexp(self.log_curvatures(at), np.log(np.maximum(sizes, 0.0))) / 2
        some = np.isfinite(halves)
        halves = np.where(some, halves, 0.0)
        negative, positive = np.exp(self.log_sums(at) - halves)
        wanted = np.where(some, negative - positive - slope * np.exp(-halves), 0.0)
        product, precondition = self._operators(at, halves, sizes * np.exp(-2 * halves), some)
        return np.asarray(self.moves @ (_conjugate_gradients(product, precondition, wanted) * np.exp(-halves)))

    def _operators(
        self, at: Floats, halves: Floats, sizes: Floats, some: Mask
    ) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
        """Returns products with the second derivative, its diagonal made 1, and with an inverse of its sparse part.

        Args:
            at: (K + m,) settled log-scales.
            halves: (J,) half the logs of the diagonal.
            sizes: (J,) the share of the diagonal that no entry makes.
            some: (J,) the moves that change the function.
        """
        from scipy.sparse import csc_array

        source, moves, totals = self._source, self.moves, self._source.totals
        logs = self.entries.at(at).logs / 2
        changes = (self.exponents @ moves).tocoo()
        data = changes.data * np.exp(logs[changes.row] - halves[changes.col])
        matrix = csc_array((data, (changes.row, changes.col)), shape=changes.shape)
        normal = self.exponents[:, len(at) - len(totals) :].multiply(np.exp(logs)[:, None])
        ranks = np.asarray((matrix.T @ normal).toarray()) / np.sqrt(totals)
        scales = np.where(some, np.exp(-halves), 0.0)

        def product(vector: Floats) -> Floats:
            """Returns the second derivative times a vector."""
            image = matrix.T @ (matrix @ vector) - ranks @ (ranks.T @ vector)
            return np.asarray(image + scales * (moves.T @ source.bent(at, moves @ (scales * vector))))

        places = np.arange(len(halves), dtype=np.int64)
        diagonal = csc_array((sizes + np.where(some, 1e-13, 1.0), (places, places)), shape=(len(halves), len(halves)))
        return product, factorised(csc_array(matrix.T @ matrix + diagonal)).solve


def _conjugate_gradients(product: Callable[[Floats], Floats], precondition: Callable[[Floats], Floats], wanted: Floats) -> Floats:
    """Returns the solution of a positive matrix, or the best that so many products have reached."""
    found, residual = np.zeros_like(wanted), wanted
    ahead = precondition(residual)
    direction, energy = ahead, float(residual @ ahead)
    first = energy
    if not np.isfinite(energy):
        return np.full_like(wanted, np.nan)
    for _ in range(min(_MOST_PRODUCTS, 20 + 2 * len(wanted))):
        if not energy > _PRECISION**2 * first:
            break
        image = product(direction)
        curve = float(direction @ image)
        if not curve > 0:
            break
        found, residual = found + energy / curve * direction, residual - energy / curve * image
        ahead = precondition(residual)
        before, energy = energy, float(residual @ ahead)
        direction = ahead + energy / before * direction
    return found


class TermKind(Kind):
    """How entries become sums of moves, for a sum of terms.

    Args:
        source: the terms.
        count: number K of the variables.
        sums: variables whose sum stays, by set.
    """

    def __init__(self, source: TermSource, count: int, sums: Sequence[Ids]) -> None:
        self._source, self._count, self._sums = source, count, sums

    def moves(self, entries: Entries, log_scales: Floats, free: Mask) -> Any:
        """Returns a basis of the moves of free variables, which leave the sums and the normalised sums' logarithms alone."""
        sums = [ids[free[ids]] for ids in self._sums]
        return moves_of(entries, log_scales, np.flatnonzero(free[: self._count]), sums)

    def sums(self, p: float, entries: Entries, moves: Any) -> SetSums:
        """Returns the sums of these moves over entries, one of each exponents."""
        return TermSums(p, entries, moves, self._source)

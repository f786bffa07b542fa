"""A function of several terms as sets of channels are balanced in it: its single entries, and all that is no entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..solve.channel_sets.large_terms import LargeTerms
from ..solve.max_balance.entries import Entries, Floats, Ids, Mask, joined
from ..solve.max_balance.source import Deciding
from .function import Function
from .own import Own
from .parts import Exponentials, Normal

__all__ = ["LargeFunction", "sets_of"]


def sets_of(function: Function, held: Tensor, limit: Tensor) -> LargeTerms | None:
    """Returns what balances sets of channels in a function of large powers; None: its derivative says all.

    Args:
        function: to minimise.
        held: (K,) bool: variables that stay where they are.
        limit: (2, K) how far log-scales may go.
    """
    large = LargeTerms.applies(function.steepness)
    return LargeTerms(LargeFunction(function, held, limit)) if large else None


@dataclass(frozen=True)
class _Sum:
    """One sum of exponentials: its entries add exp(log_factor + q (log m + a . s)), over the normalised sum of some number."""

    part: Exponentials
    log_factor: float
    number: int | None

    def read(self, entries: Entries, count: int) -> Entries:
        """Returns entries of the norm as those of the function, with the variable of the normalised sum."""
        q = self.part.objective.p
        coefficients = q * entries.coefficients.astype(np.float64)
        found = Entries(entries.ids, coefficients, self.log_factor + q * entries.logs)
        if self.number is None:
            return found
        ids = np.full((len(entries), 1), count + self.number, dtype=np.int64)
        return Entries(
            np.append(found.ids, ids, axis=1), np.append(found.coefficients, np.full(ids.shape, -1.0), axis=1), found.logs
        )


@dataclass(frozen=True, eq=False)
class LargeFunction:
    """A function as `fxenorm.solve.channel_sets.large_terms.Terms`.

    Attributes:
        function: to minimise.
        held: (K,) bool: variables that stay where they are.
        limit: (2, K) how far log-scales may go.
    """

    function: Function
    held: Tensor
    limit: Tensor

    @property
    def degree(self) -> Tensor:
        """(K,) any numbers, in the type and on the device of log-scales."""
        return self.limit[0]

    @property
    def steepness(self) -> float:
        """The largest exponent by which an entry follows a log-scale."""
        return self.function.steepness

    @cached_property
    def sums_kept(self) -> Sequence[Ids]:
        """All sets of variables whose sum stays 0."""
        means = self.function.means
        numbers = np.zeros(0, dtype=np.int64) if means is None else means.cpu().numpy()
        return [np.flatnonzero(numbers == number) for number in np.unique(numbers[numbers >= 0])]

    @cached_property
    def _normal(self) -> list[Normal]:
        """All normalised sums, in the order of their variables."""
        return [part for part in self.function.parts if isinstance(part, Normal)]

    @cached_property
    def _own(self) -> list[Own]:
        """All terms of a user's own."""
        return [part for part in self.function.parts if isinstance(part, Own)]

    @cached_property
    def _sums(self) -> list[_Sum]:
        """All sums of exponentials, those inside normalised ones too."""
        found = [_Sum(part, part.log_weight, None) for part in self.function.sums()]
        for number, part in enumerate(self._normal):
            log_total = part.log_weight + math.log(part.count)
            found += [_Sum(one, log_total + one.log_weight, number) for one in part.sums]
        return [one for one in found if not one.part.objective.is_empty]

    @property
    def is_sums(self) -> bool:
        """Whether it is nothing but sums of exponentials."""
        return not self._normal and not self._own

    @cached_property
    def totals(self) -> Floats:
        """(m,) the weight times the number of entries of each normalised sum."""
        return np.array([math.exp(part.log_weight) * part.count for part in self._normal])

    def free(self, log_scales: Tensor) -> Mask:
        """(K,) the variables that may move and that the function depends on."""
        return np.asarray((~self.held & self.function.log_sizes(log_scales).isfinite()).cpu().numpy())

    def log_sums(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (K,) logs of the two sides of the derivative, less what sums that stay make of it."""
        if self.function.means is None:
            return self.function.log_sides(log_scales)
        gradient = self.function.value_and_gradient(log_scales)[1]
        return (-gradient).clamp(min=0.0).log(), gradient.clamp(min=0.0).log()

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of all that is added up in the derivative."""
        return torch.logaddexp(*self.function.log_sides(log_scales))

    # ---------------------------------------------------------------- what is no entry

    def _tensor(self, log_scales: Floats) -> Tensor:
        """Returns (K,) the log-scales of the variables."""
        count = self.held.numel()
        return self.function.centred(torch.from_numpy(np.ascontiguousarray(log_scales[:count])).to(self.degree))

    def _numbers(self, vector: Tensor, extra: Floats) -> Floats:
        """Returns (K + m,) a vector, with other numbers behind it."""
        return np.append(vector.to("cpu", torch.float64).numpy(), extra)

    def settled(self, log_scales: Floats) -> Floats:
        """Returns log-scales of which the last m are the logarithms of the normalised sums."""
        at = self._tensor(log_scales)
        return self._numbers(at, np.array([float(part.log_sum(at)) for part in self._normal]))

    def value(self, log_scales: Floats) -> float:
        """Returns the function at some log-scales."""
        return float(self.function.value_and_gradient(self._tensor(log_scales))[0])

    def slope(self, log_scales: Floats) -> Floats:
        """Returns the derivative of all that is no sum of exponentials; the logarithms of sums are where theirs is 0."""
        at = self._tensor(log_scales)
        total = torch.zeros_like(at)
        for part in self._normal:
            total = total - math.exp(part.log_weight) * part.linear
        for own in self._own:
            sides = own.sides(at)
            total = total + sides.log_positive.exp() - sides.log_negative.exp()
        return self._numbers(total, np.zeros_like(self.totals))

    def sizes(self, log_scales: Floats) -> Floats:
        """Returns second derivatives of a user's own terms by variable, or estimates."""
        at = self._tensor(log_scales)
        total = sum((own.log_sizes(at).exp() for own in self._own), torch.zeros_like(at))
        return self._numbers(total, np.zeros_like(self.totals))

    def bent(self, log_scales: Floats, direction: Floats) -> Floats:
        """Returns the second derivative of a user's own terms times a direction."""
        at, along = self._tensor(log_scales), torch.from_numpy(direction[: self.held.numel()].copy()).to(self.degree)
        total = sum((own.times(at, along) for own in self._own), torch.zeros_like(at))
        return self._numbers(total, np.zeros_like(self.totals))

    # ---------------------------------------------------------------- entries

    def largest_entries(self, log_scales: Floats, count: int) -> Entries:
        """Returns so many of the largest entries in and out of each variable of each sum, by their logs before any rescaling."""
        size = self.held.numel()
        return joined([one.read(one.part.objective.largest_entries(log_scales[:size], count), size) for one in self._sums])

    def entries_where(self, log_scales: Floats, least: Floats, choose: Callable[[Entries], Mask]) -> Entries:
        """Returns those of all entries above a value after a rescaling that are chosen, by their logs before it."""
        size = self.held.numel()
        found = []
        for one in self._sums:
            divisor = 0.0 if one.number is None else log_scales[size + one.number]
            values = (least[:size] - one.log_factor + divisor) / one.part.objective.p

            def chosen(entries: Entries, one: _Sum = one) -> Mask:
                """Chooses of entries of the norm."""
                return choose(one.read(entries, size))

            found.append(one.read(one.part.objective.entries_where(log_scales[:size], values, chosen), size))
        return joined(found)

    def remember(self, entries: Deciding) -> None:
        """Keeps nothing: p = inf is another question."""

    def remembered(self) -> Deciding | None:
        """Nothing is kept, so there is nothing to return."""
        return None

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Floats) -> None:
        """There are no bottleneck cycles of several powers."""

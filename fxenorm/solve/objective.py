"""The interface between solvers and the objective: sums, derivatives, groups, and one outer iteration of a solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .max_balance.entries import Entries, Floats, Ids, Mask
from .max_balance.source import Deciding

__all__ = ["Cycle", "GroupUpdate", "Objective", "Operator"]


class Operator(Protocol):
    """A symmetric matrix that is only ever multiplied with."""

    def product(self, vector: Tensor) -> Tensor:
        """(K,) its rows times a vector, row k divided by p^2 (N_k + P_k)."""


@dataclass(frozen=True)
class GroupUpdate:
    """Variables that Gauss-Seidel updates together.

    Attributes:
        variables: (n,) their ids.
        sums: from (K,) log-scales to the (n,) logs of N and of P of these variables.
    """

    variables: Tensor
    sums: Callable[[Tensor], tuple[Tensor, Tensor]]


class Objective(Protocol):
    """F(s), the sum over entries of m_e exp(p a_e . s), read once."""

    @property
    def p(self) -> float:
        """The norm's exponent, > 0 or infinite."""

    @property
    def degree(self) -> Tensor:
        """(K,) A_k of a Jacobi cycle."""

    @property
    def held(self) -> Tensor:
        """(K,) bool: variables that stay at 0."""

    @property
    def limit(self) -> Tensor:
        """(2, K) how far log-scales may go up and down; or (K,) for both."""

    @property
    def labels(self) -> Tensor:
        """(K,) int64: the group of each variable."""

    @property
    def group_updates(self) -> Sequence[GroupUpdate]:
        """The groups in the order of Gauss-Seidel."""

    @property
    def is_empty(self) -> bool:
        """Whether no entry is counted, so that F is 0."""

    def within(self, limit: Tensor) -> Objective:
        """Returns the same objective within another limit."""

    def log_sums(self, log_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(K,) log N and log P after a rescaling."""

    def log_objectives(self, log_scales: Sequence[Tensor | None]) -> Sequence[Tensor]:
        """0-d: log F after each of some rescalings; p = inf: the log of the largest entry."""

    def log_objective(self, log_scales: Tensor | None = None) -> Tensor:
        """0-d: log F after a rescaling."""

    def curvature(self, log_scales: Tensor, log_diagonal: Tensor, free: Tensor) -> Operator:
        """Returns the Hessian in the variables `free`, relative to p^2 exp(log_diagonal)."""

    def softened(self, p: float, *, start: bool = False) -> Objective | None:
        """Returns the same with a smaller exponent of the norm, which is less steep; None: it is not to be had.

        Args:
            p: the smaller exponent.
            start: whether it is for a start alone, which may take room beside the weights.
        """

    def largest_entries(self, log_scales: Floats, count: int) -> Entries:
        """Returns so many of the largest entries of each channel after a rescaling, by their logs before it; p = inf alone."""

    def entries_where(self, log_scales: Floats, least: Floats, choose: Callable[[Entries], Mask]) -> Entries:
        """Returns those entries above a value after a rescaling that are chosen, by their logs before it; p = inf alone."""

    def remember(self, entries: Deciding) -> None:
        """Keeps the entries that have decided, for the next who asks."""

    def remembered(self) -> Deciding | None:
        """Returns the entries that decided last; None: nobody has left any."""

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Floats) -> tuple[Floats, Ids, Floats] | None:
        """Contracts the bottleneck cycles of a graph in compiled code; None: there is none. See `Backend.contraction`."""

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """F as a function of one scalar a label: logs of its entries, and (3, n) of entry, label and exponent."""


class Cycle(Protocol):
    """One outer iteration of a solver; an object lives for one solution and may remember its last iterations."""

    def __call__(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the next (K,) log-scales, within the objective's limit.

        Args:
            objective: the function to minimise.
            log_scales: (K,) where.
            log_negative, log_positive: (K,) log N and log P there.
        """

"""Makes sums of all processes from those of one: the numbers by which solvers decide, the same everywhere.

Every number that leaves `SharedSums` is the same on every process, bit for bit, so the solvers decide alike everywhere. The
matrices of |W|^p are read once and stay where they are. Sums by channel travel, once a question.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...distributed.ranks import Ranks
from ...kernels.program import float_dtype
from ...solve.objective import Operator

__all__ = ["OwnSums", "SharedSums", "Sums"]

_WITH_ROOMS = "sums and rooms"
_SHARPNESS, _FARTHEST = 20.0, 30.0
"""exp(-20 times a room) of at most 30 is far inside a float64's range, and the sum of some is nearly the largest."""

T = TypeVar("T")

Pattern = tuple[tuple[int, int], ...]
"""Labels and exponents of an entry of the coarse problem."""

Pair = tuple[Tensor, Tensor]
"""Logarithms of N and of P."""


class Sums(abc.ABC):
    """Turns the numbers that one process has summed into those of all.

    Attributes:
        is_shared: whether other processes have a part in the sums.
    """

    is_shared: bool

    @abc.abstractmethod
    def pair(self, question: str, make: Callable[[], Pair], count: int) -> Pair:
        """Returns (count,) log N and log P of all.

        Args:
            question: names the numbers that are asked for, the same on every process.
            make: sums this process's part.
            count: number of variables.
        """

    @abc.abstractmethod
    def blocks(self, make: Callable[[], Sequence[Tensor]], number: int, positions: Tensor | None, count: int) -> list[Tensor]:
        """Returns, for each of some rescalings, the logs of the sums of all counted tensors.

        Args:
            make: sums this process's blocks.
            number: of rescalings.
            positions: of this process's blocks among the counted tensors; None: they are all.
            count: of counted tensors.
        """

    @abc.abstractmethod
    def operator(self, own: Operator) -> Operator:
        """Returns the matrix that is the sum of all processes' matrices."""

    @abc.abstractmethod
    def entries(self, make: Callable[[], Pair], log_scales: Tensor, labels: Tensor) -> Pair:
        """Returns the coarse problem of all; see `fxenorm.solve.objective.Objective.aggregate`."""

    @abc.abstractmethod
    def least(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns (2, count) the least of all processes' rooms."""

    @abc.abstractmethod
    def anywhere(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns (count,) bool: True where any process says so."""

    @abc.abstractmethod
    def gathered(self, make: Callable[[], T]) -> list[T]:
        """Returns the objects that all processes make, in the same order everywhere."""

    @abc.abstractmethod
    def total(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns the (count,) sums of all processes' float64 numbers, on the device where they are made."""

    @abc.abstractmethod
    def number(self, make: Callable[[], int]) -> int:
        """Returns the sum of all processes' numbers."""


class OwnSums(Sums):
    """Answers for a process that has all of the model: its own sums are everybody's."""

    is_shared = False

    def pair(self, question: str, make: Callable[[], Pair], count: int) -> Pair:
        """Returns this process's log N and log P, each (count,)."""
        return make()

    def blocks(self, make: Callable[[], Sequence[Tensor]], number: int, positions: Tensor | None, count: int) -> list[Tensor]:
        """Returns this process's blocks, which are all of them."""
        return list(make())

    def operator(self, own: Operator) -> Operator:
        """Returns the matrix as it is: there is no other."""
        return own

    def entries(self, make: Callable[[], Pair], log_scales: Tensor, labels: Tensor) -> Pair:
        """Returns this process's entries, which are all of them."""
        return make()

    def least(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns this process's rooms, (2, count)."""
        return make()

    def anywhere(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns (count,) bool as this process says it."""
        return make()

    def gathered(self, make: Callable[[], T]) -> list[T]:
        """Returns this process's object, which is the only one."""
        return [make()]

    def total(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns this process's (count,) numbers, which are the sums."""
        return make()

    def number(self, make: Callable[[], int]) -> int:
        """Returns this process's number, which is the sum."""
        return make()


class SharedSums(Sums):
    """Adds up the sums of all processes, as logarithms relative to the last answer to the same question.

    Args:
        ranks: the processes.
        p: the norm's exponent.
        reference: (2 K,) logarithms near those of N and P, before anything is known of the weights.
        failures: takes the errors that this process met in the middle of a solution.
    """

    is_shared = True

    def __init__(self, ranks: Ranks, p: float, reference: Tensor, failures: list[BaseException]) -> None:
        self.ranks, self._failures = ranks, failures
        self._p = p
        self._near: dict[str, Tensor] = {"sums": reference}

    def own(self, numbers: Callable[[], Tensor], count: int) -> Tensor:
        """Returns (count,) numbers of this process; NaN after an error, so that the others need not wait in vain.

        They do not move what they cannot know then, and the error is raised when it is this process's turn.
        """
        try:
            return numbers()
        except BaseException as error:  # the others are in the same collective
            self._failures.append(error)
            return torch.full((count,), math.nan, dtype=float_dtype(self.ranks.device), device=self.ranks.device)

    def combined(self, question: str, logs: Tensor, notes: Tensor | None = None, least: int = 0) -> tuple[Tensor, Tensor]:
        """Returns the logarithms of all processes' sums, and everybody's notes; see `Ranks.combined`."""
        near = self._near.get(question, torch.zeros_like(logs))
        found, board = self.ranks.combined(logs, self._p, near, notes, least)
        self._near[question] = torch.where(found.isfinite(), found, near)
        return found, board

    def with_rooms(
        self, logs: Tensor, rooms: Tensor, notes: Tensor | None = None, least: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the logs of all sums, the least of all rooms, and everybody's notes, in the collective of the sums.

        Collectives add up rooms and do not compare them: of those of n processes the answer is smaller than the least by at most
        log(n) / 20, and none is larger than 30.

        Args:
            logs: (2 K,) log N and log P of this process's part.
            rooms: (2, K) its rooms, natural logarithms.
            notes, least: as `Ranks.combined` takes them.
        """
        sharp = -_SHARPNESS * rooms.clamp(max=_FARTHEST).reshape(-1)
        near = self._near["sums"]
        self._near.setdefault(_WITH_ROOMS, torch.cat([near, torch.zeros_like(sharp)]))
        found, board = self.combined(_WITH_ROOMS, torch.cat([logs, sharp]), notes, least)
        sums, common = found[: logs.numel()], found[logs.numel() :] / -_SHARPNESS
        return sums, common.clamp(0.0, _FARTHEST).nan_to_num(nan=0.0).reshape(rooms.shape), board

    def pair(self, question: str, make: Callable[[], Pair], count: int) -> Pair:
        """Returns log N and log P of all processes, by one collective."""
        found, _ = self.combined(question, self.own(lambda: torch.cat(make()), 2 * count))
        negative, positive = found.chunk(2)
        return negative, positive

    def blocks(self, make: Callable[[], Sequence[Tensor]], number: int, positions: Tensor | None, count: int) -> list[Tensor]:
        """Returns the sums of all counted tensors, in one collective for all rescalings."""

        def own_blocks() -> Tensor:
            """Puts the blocks of this process's part into their places; -inf elsewhere."""
            logs = []
            for own in make():
                full = own.new_full((count,), -math.inf)
                logs.append(own if positions is None else full.index_put((positions.to(full.device),), own))
            return torch.cat(logs)

        found, _ = self.combined(f"{number} energies", self.own(own_blocks, number * count))
        return list(found.chunk(number)) if found.numel() else [found] * number

    def operator(self, own: Operator) -> Operator:
        """Returns the sum; every product with it is one collective."""
        return _SummedOperator(own, self)

    def entries(self, make: Callable[[], Pair], log_scales: Tensor, labels: Tensor) -> Pair:
        """Returns the entries of all processes, equal exponents put together."""

        def own_entries() -> list[tuple[Pattern, float]]:
            """Lists the entries of this process's part, each with its labels and exponents."""
            logs, triples = make()
            terms: list[list[tuple[int, int]]] = [[] for _ in range(logs.numel())]
            for entry, label, exponent in triples.T.tolist():
                terms[entry].append((label, exponent))
            return list(zip((tuple(sorted(members)) for members in terms), logs.tolist(), strict=True))

        merged: dict[Pattern, float] = {}
        for part in self.ranks.gather_made(own_entries):
            for pattern, log in part:
                merged[pattern] = float(np.logaddexp(merged.get(pattern, -math.inf), log))
        rows = [(entry, label, exponent) for entry, pattern in enumerate(merged) for label, exponent in pattern]
        found = torch.tensor(rows, dtype=torch.int64, device=labels.device).reshape(-1, 3).T
        return torch.tensor(list(merged.values()), dtype=log_scales.dtype, device=log_scales.device), found

    def least(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns the least of all processes' rooms; none where an error is met."""
        own = self.own(lambda: make().reshape(-1), 2 * count).nan_to_num(nan=0.0)
        return -self.ranks.largest(-own).reshape(2, -1)

    def anywhere(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns (count,) bool: True where any process says so, by one collective."""
        return self.ranks.total(self.own(lambda: make().double(), count)).nan_to_num() > 0

    def gathered(self, make: Callable[[], T]) -> list[T]:
        """Returns the objects that all processes make, by one collective; where one cannot, all raise."""
        return self.ranks.gather_made(make)

    def total(self, make: Callable[[], Tensor], count: int) -> Tensor:
        """Returns the (count,) sums of all processes' numbers, by one collective; NaN everywhere where one met an error."""
        return self.ranks.total(self.own(make, count))

    def number(self, make: Callable[[], int]) -> int:
        """Returns the sum of all processes' numbers, by one collective."""
        device = self.ranks.device
        own = self.own(lambda: torch.full((1,), float(make()), dtype=float_dtype(device), device=device), 1)
        return int(self.ranks.total(own).nan_to_num())


class _SummedOperator:
    """Multiplies by the sum of the matrices of all processes."""

    def __init__(self, own: Operator, shared: SharedSums) -> None:
        self._own, self._shared = own, shared

    def product(self, vector: Tensor) -> Tensor:
        """Returns (K,) the product of the summed matrix with a vector, by one collective."""
        return self._shared.ranks.total(self._shared.own(lambda: self._own.product(vector), vector.numel()))

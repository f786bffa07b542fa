"""The objective at the current weights of a model that is spread over processes, as the solvers see it.

Every number that leaves it is the same on every process, bit for bit, so the solvers decide alike everywhere. The matrices of
|W|^p are read once and stay where they are; what travels are sums by channel, once a question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..distributed.ranks import Ranks
from ..kernels.program import ReduceProgram, float_dtype
from ..kernels.reference.curvature import Curvature, aggregate
from ..solve.objective import GroupUpdate, Operator
from .objective import Problem

__all__ = ["Reducer", "ShardedProblem"]

_WITH_ROOMS = "sums and rooms"
_SHARPNESS, _FARTHEST = 20.0, 30.0
"""exp(-20 times a room) of at most 30 is far inside a float64's range, and the sum of some is nearly the largest."""

Pattern = tuple[tuple[int, int], ...]
"""Labels and exponents of an entry of the coarse problem."""


class Reducer:
    """Adds up what all processes have summed, as logarithms relative to the last answer to the same question.

    Args:
        ranks: the processes.
        p: the norm's exponent.
        reference: (2 K,) logarithms near those of N and P, before anything is known of the weights.
        failures: takes the errors that this process met in the middle of a solution.
    """

    def __init__(self, ranks: Ranks, p: float, reference: Tensor, failures: list[BaseException]) -> None:
        self.ranks, self._failures = ranks, failures
        self._p = p
        self._near: dict[str, Tensor] = {"sums": reference}

    def own(self, numbers: Callable[[], Tensor], count: int) -> Tensor:
        """(count,) numbers of this process; not a number where an error is met, so that others need not wait in vain.

        They do not move what they cannot know then, and the error is raised when it is this process's turn.
        """
        try:
            return numbers()
        except BaseException as error:  # the others are in the same collective
            self._failures.append(error)
            return torch.full((count,), math.nan, dtype=float_dtype(self.ranks.device), device=self.ranks.device)

    def __call__(self, question: str, logs: Tensor, notes: Tensor | None = None, least: int = 0) -> tuple[Tensor, Tensor]:
        """The logarithms of all processes' sums, and everybody's notes; see `Ranks.combined`."""
        near = self._near.get(question, torch.zeros_like(logs))
        found, board = self.ranks.combined(logs, self._p, near, notes, least)
        self._near[question] = torch.where(found.isfinite(), found, near)
        return found, board

    def with_rooms(
        self, logs: Tensor, rooms: Tensor, notes: Tensor | None = None, least: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The logarithms of all sums, the least of all rooms, and everybody's notes, in the collective that the sums need anyway.

        What travels there is added up, not compared: of the rooms of n processes the answer is smaller than the least by at most
        log(n) / 20, and none is larger than 30.

        Args:
            logs: (2 K,) log N and log P of this process's part.
            rooms: (2, K) its rooms, natural logarithms.
            notes, least: as `Ranks.combined` takes them.
        """
        sharp = -_SHARPNESS * rooms.clamp(max=_FARTHEST).reshape(-1)
        near = self._near["sums"]
        self._near.setdefault(_WITH_ROOMS, torch.cat([near, torch.zeros_like(sharp)]))
        found, board = self(_WITH_ROOMS, torch.cat([logs, sharp]), notes, least)
        sums, common = found[: logs.numel()], found[logs.numel() :] / -_SHARPNESS
        return sums, common.clamp(0.0, _FARTHEST).nan_to_num(nan=0.0).reshape(rooms.shape), board


class _SummedOperator:
    """A matrix that is the sum of one a process."""

    def __init__(self, own: Operator, reduce: Reducer) -> None:
        self._own, self._reduce = own, reduce

    def product(self, vector: Tensor) -> Tensor:
        """(K,) the sum's rows times a vector."""
        return self._reduce.ranks.total(self._reduce.own(lambda: self._own.product(vector), vector.numel()))


@dataclass(frozen=True)
class ShardedProblem(Problem):
    """A `Problem` whose program and matrices are those of this process's part of the weights.

    Attributes:
        whole: the program of all counted tensors.
        positions: (blocks of the program,) the place of each in `whole`.
        reducer: adds up over processes.
    """

    whole: ReduceProgram | None = None
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu"))
    reducer: Reducer | None = None

    @property
    def whole_program(self) -> ReduceProgram:
        """The program of all counted tensors."""
        return self.program if self.whole is None else self.whole

    @property
    def _reduce(self) -> Reducer:
        """Adds up over processes."""
        if self.reducer is None:
            raise TypeError("a ShardedProblem needs a reducer")
        return self.reducer

    def stacked(self) -> ShardedProblem:
        """Itself: what processes tell one another is made for the tensors one by one."""
        return self

    def softened(self, p: float) -> None:
        """None: what processes tell one another is made for one exponent."""

    def local_logs(self, log_scales: Tensor | None = None) -> Tensor:
        """(2 K,) log N and log P of this process's part, after a rescaling."""
        return torch.cat(super().log_sums(log_scales))

    def log_sums(self, log_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(K,) log N and log P after a rescaling."""
        count = 2 * self.whole_program.num_scales
        found, _ = self._reduce("sums", self._reduce.own(lambda: self.local_logs(log_scales), count))
        negative, positive = found.chunk(2)
        return negative, positive

    def energies(self, log_scales: Sequence[Tensor | None]) -> list[Tensor]:
        """For each of some rescalings, (counted tensors,) the log of the sum of |w|^p, in one collective for all of them."""
        count, blocks = len(log_scales), len(self.whole_program.blocks)

        def own_energies() -> Tensor:
            """Those of this process's part."""
            logs = []
            for own in super(ShardedProblem, self).energies(log_scales):
                full = self.degree.new_full((blocks,), -math.inf)
                logs.append(full.index_put((self.positions.to(full.device),), own))
            return torch.cat(logs)

        found, _ = self._reduce(f"{count} energies", self._reduce.own(own_energies, count * blocks))
        return list(found.chunk(count)) if found.numel() else [found] * count

    def curvature(self, log_scales: Tensor, log_diagonal: Tensor, free: Tensor) -> Operator:
        """The Hessian: every product is one collective."""
        own = Curvature(self.program, self.matrices, log_scales, log_diagonal, free, self.contributions(log_scales))
        return _SummedOperator(own, self._reduce)

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The objective as a function of one scalar a label: the entries of all processes, equal exponents put together."""

        def own_entries() -> list[tuple[Pattern, float]]:
            """Those of this process's part."""
            logs, triples = aggregate(self.program, self.matrices, log_scales, labels, count)
            terms: list[list[tuple[int, int]]] = [[] for _ in range(logs.numel())]
            for entry, label, exponent in triples.T.tolist():
                terms[entry].append((label, exponent))
            return list(zip((tuple(sorted(members)) for members in terms), logs.tolist(), strict=True))

        merged: dict[Pattern, float] = {}
        for part in self._reduce.ranks.gather_made(own_entries):
            for pattern, log in part:
                merged[pattern] = float(np.logaddexp(merged.get(pattern, -math.inf), log))
        rows = [(entry, label, exponent) for entry, pattern in enumerate(merged) for label, exponent in pattern]
        found = torch.tensor(rows, dtype=torch.int64, device=labels.device).reshape(-1, 3).T
        return torch.tensor(list(merged.values()), dtype=log_scales.dtype, device=log_scales.device), found

    @cached_property
    def group_updates(self) -> tuple[GroupUpdate, ...]:
        """What Gauss-Seidel needs of each group; sums are one collective a group."""
        own = {int(self.labels[update.variables[0]]): update for update in self.find_updates()}
        slots, count = self.whole_program.slots, self.whole_program.num_scales
        labels = torch.unique(self.labels[slots[slots < 2 * count] % max(count, 1)]).tolist()
        return tuple(self._update_of_all(label, own.get(label)) for label in labels)

    def _update_of_all(self, label: int, own: GroupUpdate | None) -> GroupUpdate:
        """One group, with the sums of all processes."""
        variables = (self.labels == label).nonzero().reshape(-1)

        def sums(log_scales: Tensor) -> tuple[Tensor, Tensor]:
            """Logs of N and P of the group's variables."""
            count = 2 * variables.numel()
            if own is None:
                logs = log_scales.new_full((count,), -math.inf)
            else:
                logs = self._reduce.own(lambda: torch.cat(own.sums(log_scales)), count)
            found, _ = self._reduce(f"stage {label}", logs)
            negative, positive = found.chunk(2)
            return negative, positive

        return GroupUpdate(variables, sums)

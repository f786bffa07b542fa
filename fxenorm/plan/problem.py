"""The objective at the current weights, read once, as the solvers see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..kernels.backend import Backend
from ..kernels.curvature import Curvature, aggregate
from ..kernels.program import ReduceProgram
from ..solve.jacobi import imbalance
from ..solve.objective import Operator, Stage

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """The objective at the current weights; an `fxenorm.solve.objective.Objective`.

    Attributes:
        backend, program: the executor and what it runs.
        matrices: as `Backend.matrices` returns them.
        held: (K,) bool: variables that stay at 0.
        limit: (K,) the largest |log-scale|, may be infinite.
        groups: (K,) int64: the group of each variable, numbered in the order in which Gauss-Seidel takes them; None: one group.
    """

    backend: Backend
    program: ReduceProgram
    matrices: Sequence[Tensor]
    held: Tensor
    limit: Tensor
    groups: Tensor | None = None

    @property
    def p(self) -> float:
        """The norm's exponent."""
        return self.program.p

    @property
    def whole_program(self) -> ReduceProgram:
        """The program of all counted tensors, whatever part of them this process reads."""
        return self.program

    @property
    def is_empty(self) -> bool:
        """Whether nothing is counted."""
        return not self.whole_program.blocks

    @property
    def degree(self) -> Tensor:
        """(K,) A_k."""
        return self.program.degree

    @cached_property
    def labels(self) -> Tensor:
        """(K,) the group of each variable."""
        return torch.zeros_like(self.held, dtype=torch.int64) if self.groups is None else self.groups

    @cached_property
    def largest_exponent(self) -> Tensor:
        """(K,) the largest |a_ek| of any counted entry."""
        found = torch.ones(self.program.num_scales + 1, dtype=torch.float64)
        # Where terms meet in one entry, their sum bounds the net exponent.
        for block in self.whole_program.blocks:
            total = sum(abs(coefficient) for coefficient, _ in block.terms)
            for coefficient, ids in block.terms:
                size = abs(coefficient) if block.collided is None else total
                flat = ids.reshape(-1).cpu()
                found[flat] = found[flat].clamp(min=size)
        return found[:-1].to(self.degree)

    def log_sums(self, log_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(K,) log N and log P after a rescaling."""
        sums = self.backend.sums(self.program, self.matrices, log_scales)
        return sums.log_negative, sums.log_positive

    def energies(self, log_scales: Sequence[Tensor | None]) -> list[Tensor]:
        """For each of some rescalings, (blocks,) the log of each counted tensor's sum of |w|^p, without layer weights."""
        return [self.backend.energies(self.program, self.matrices, scales) for scales in log_scales]

    def log_objectives(self, log_scales: Sequence[Tensor | None]) -> list[Tensor]:
        """0-d: log F after each of some rescalings; p = inf: the log of the largest entry."""
        found = [energies + self.whole_program.log_weights for energies in self.energies(log_scales)]
        return [logs.amax(0) if math.isinf(self.p) else logs.logsumexp(0) for logs in found]

    def log_objective(self, log_scales: Tensor | None = None) -> Tensor:
        """0-d: `log_objectives` of one."""
        return self.log_objectives([log_scales])[0]

    def norm(self, log_scales: Tensor | None = None) -> Tensor:
        """0-d: F ** (1 / p); p = inf: the largest entry; 0 where nothing is counted."""
        if self.is_empty:
            return self.program.degree.new_zeros(())
        logs = self.log_objective(log_scales)
        return logs.exp() if math.isinf(self.p) else (logs / self.p).exp()

    def imbalance(self, log_scales: Tensor | None = None) -> float:
        """The imbalance after a rescaling."""
        return float(imbalance(*self.log_sums(log_scales), self.p, self.held))

    def curvature(self, log_scales: Tensor, log_diagonal: Tensor, free: Tensor) -> Operator:
        """The Hessian; see `Curvature`."""
        contributions = self.backend.contributions(self.program, self.matrices, log_scales)
        return Curvature(self.program, self.matrices, log_scales, log_diagonal, free, contributions)

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The objective as a function of one scalar a label; see `fxenorm.kernels.curvature.aggregate`."""
        return aggregate(self.program, self.matrices, log_scales, labels, count)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What Gauss-Seidel needs of each group: only the tensors that carry one of its variables are read."""
        return self.find_stages()

    def find_stages(self) -> tuple[Stage, ...]:
        """`stages`, from this process's program."""
        program, count = self.program, self.program.num_scales
        lengths = [_contributions_of(block.terms, block.collided_rows) for block in program.blocks]
        slots, offsets = torch.split(program.slots, lengths), torch.split(program.offsets, lengths)
        labels = torch.nn.functional.pad(self.labels, (0, 1), value=-1)
        touched: dict[int, list[int]] = {}
        for number, part in enumerate(slots):
            ids = torch.where(part < 2 * count, part % max(count, 1), count)
            for label in torch.unique(labels[ids]).tolist():
                touched.setdefault(label, []).append(number)
        touched.pop(-1, None)
        return tuple(self._stage(label, touched[label], slots, offsets) for label in sorted(touched))

    def _stage(self, label: int, numbers: list[int], slots: Sequence[Tensor], offsets: Sequence[Tensor]) -> Stage:
        """One group, with the part of the program that concerns it."""
        program, count = self.program, self.program.num_scales
        own = (self.labels == label).nonzero().reshape(-1)
        place = torch.full((2 * count + 1,), 2 * own.numel(), dtype=torch.int64, device=own.device)
        place[own] = torch.arange(own.numel(), device=own.device)
        place[own + count] = place[own] + own.numel()
        part = replace(
            program,
            num_scales=own.numel(),
            blocks=tuple(program.blocks[number] for number in numbers),
            slots=place[torch.cat([slots[number] for number in numbers])],
            offsets=torch.cat([offsets[number] for number in numbers]),
            log_weights=program.log_weights[numbers],
            _copies={},
        )
        matrices = [self.matrices[number] for number in numbers]

        def sums(log_scales: Tensor) -> tuple[Tensor, Tensor]:
            """Logs of N and P of the group's variables."""
            found = self.backend.sums(part, matrices, log_scales)
            return found.log_negative, found.log_positive

        return Stage(own, sums)


def _contributions_of(terms: Sequence[tuple[int, Tensor]], collided_rows: Tensor | None) -> int:
    """How many places in a program's slots belong to one tensor."""
    return sum(ids.numel() for _, ids in terms) + (0 if collided_rows is None else collided_rows.numel())

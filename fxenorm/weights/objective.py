"""The objective at the current weights, read once, as the solvers see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..analysis.group_order import GroupOrder, GroupSums, group_order
from ..kernels.backend import Backend
from ..kernels.program import ReduceProgram
from ..kernels.reference.channel_sums import channel_sums, is_full, is_narrow, resized
from ..kernels.reference.curvature import Curvature, aggregate
from ..kernels.reference.stacked import stacked
from ..solve.jacobi import imbalance
from ..solve.objective import GroupUpdate, Operator

__all__ = ["Problem"]


_REMEMBERED = 4


class _Recent:
    """What was last worked out, by log-scales: solvers ask for several things in one place, and each would be a pass."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor | None, int, Tensor]] = []

    def get(self, log_scales: Tensor | None, make: Callable[[Tensor | None], Tensor]) -> Tensor:
        """The value that `make` gave for these very log-scales, or gives now."""
        # An inference tensor has no version; nothing here changes log-scales in place.
        version = 0 if log_scales is None or log_scales.is_inference() else log_scales._version
        for place, at, value in self._known:
            if place is log_scales and at == version:
                return value
        value = make(log_scales)
        self._known = [(log_scales, version, value), *self._known[: _REMEMBERED - 1]]
        return value


@dataclass(frozen=True)
class Problem:
    """The objective at the current weights; an `fxenorm.solve.objective.Objective`.

    Attributes:
        backend, program: the executor and what it runs.
        matrices: as `Backend.matrices` returns them.
        held: (K,) bool: variables that stay at 0.
        limit: (2, K) how far log-scales may go up and down, may be infinite; or (K,) for both.
        groups: (K,) int64: the group of each variable, numbered in the order in which Gauss-Seidel takes them; None: one group.
        order: what that needs of the groups, for the program on its device; None: it is worked out, on a CPU.
    """

    backend: Backend
    program: ReduceProgram
    matrices: Sequence[Tensor]
    held: Tensor
    limit: Tensor
    groups: Tensor | None = None
    order: Callable[[ReduceProgram], GroupOrder] | None = None
    _recent: _Recent = field(default_factory=_Recent, repr=False, compare=False)

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

    def within(self, limit: Tensor) -> Problem:
        """The same within another limit."""
        return replace(self, limit=limit)

    @cached_property
    def labels(self) -> Tensor:
        """(K,) the group of each variable."""
        return torch.zeros_like(self.held, dtype=torch.int64) if self.groups is None else self.groups

    def log_sums(self, log_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(K,) log N and log P after a rescaling."""
        sums = channel_sums(self.program, self.contributions(log_scales))
        return sums.log_negative, sums.log_positive

    def contributions(self, log_scales: Tensor | None = None) -> Tensor:
        """(slots,) as `Backend.contributions` returns them."""
        return self._recent.get(log_scales, lambda where: self.backend.contributions(self.program, self.matrices, where))

    def energies(self, log_scales: Sequence[Tensor | None]) -> list[Tensor]:
        """For each of some rescalings, (blocks,) the log of each counted tensor's sum of |w|^p, without layer weights."""
        return [self._own_energies(scales) for scales in log_scales]

    def _own_energies(self, log_scales: Tensor | None) -> Tensor:
        """(blocks,) as `Backend.energies` returns them; all channels of one side together are all of a tensor."""
        found: list[Tensor] = []
        logs, position = self.contributions(log_scales), 0
        for number, (block, matrix) in enumerate(zip(self.program.blocks, self.matrices, strict=True)):
            if block.terms and block.collided is None:
                side = logs[position : position + block.terms[0][1].numel()]
                found.append(side.amax() if math.isinf(self.p) else side.logsumexp(0))
            else:
                found.append(self.backend.energies(self.program.part([number]), [matrix], log_scales)[0])
            position += block.slots
        return torch.stack(found) if found else self.program.log_weights

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
        return Curvature(self.program, self.matrices, log_scales, log_diagonal, free, self.contributions(log_scales))

    def stacked(self) -> Problem:
        """The same objective with many small matrices as few large ones: for solvers that look at all of them at once."""
        program, matrices = stacked(self.program, self.matrices)
        return (
            self if program is self.program else replace(self, program=program, matrices=matrices, order=None, _recent=_Recent())
        )

    def softened(self, p: float) -> Problem | None:
        """The same weights (where kernels were summed: the kernels' norms) with a smaller exponent.

        None for large float64 weights: their powers would need as much room again.
        """
        if any(map(is_full, self.program.blocks, self.matrices)):
            return None
        share = p / self.p
        own = self.program.log_weights
        sizes = torch.tensor([block.slots for block in self.program.blocks], dtype=torch.int64, device=own.device)
        offsets = self.program.offsets + (share - 1) * own.repeat_interleave(sizes)
        program = replace(self.program, p=p, offsets=offsets, log_weights=share * own, _copies={}, _parts={})
        matrices = [matrix if is_narrow(matrix) else resized(self.p, p, matrix) for matrix in self.matrices]
        return replace(self, program=program, matrices=matrices, order=None, _recent=_Recent())

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The objective as a function of one scalar a label; see `fxenorm.kernels.reference.curvature.aggregate`."""
        return aggregate(self.program, self.matrices, log_scales, labels, count)

    @cached_property
    def group_updates(self) -> tuple[GroupUpdate, ...]:
        """What Gauss-Seidel needs of each group: only the tensors that carry one of its variables are read."""
        return self.find_updates()

    def find_updates(self) -> tuple[GroupUpdate, ...]:
        """`group_updates`, from this process's program."""
        return tuple(self._update(group) for group in self._order.groups)

    @cached_property
    def _order(self) -> GroupOrder:
        """The groups, on the device of the sums."""
        if self.order is not None:
            return self.order(self.program)
        return group_order(self.program, self.labels.numpy())

    def _update(self, group: GroupSums) -> GroupUpdate:
        """One group."""
        matrices = [self.matrices[number] for number in group.numbers]

        def sums(log_scales: Tensor) -> tuple[Tensor, Tensor]:
            """Logs of N and P of the group's variables."""
            found = self.backend.sums(group.program, matrices, log_scales)
            return found.log_negative, found.log_positive

        return GroupUpdate(group.variables, sums)

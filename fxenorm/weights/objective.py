"""The objective at the current weights, read once, as the solvers see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..analysis.group_order import GroupOrder, GroupSums, group_order
from ..kernels.backend import Backend, ObjectiveSums
from ..kernels.program import ReduceProgram
from ..kernels.reference.channel_sums import channel_sums, is_full, is_linear, is_narrow, powers_of_maxima, resized
from ..kernels.reference.stacked import stacked
from ..solve.jacobi import imbalance
from ..solve.max_balance.entries import Entries, Floats, Ids, Mask, joined
from ..solve.max_balance.source import Deciding
from ..solve.objective import GroupUpdate, Operator
from .shared.sums import OwnSums, Sums
from .single_entries.reading import entries_where, largest_entries

__all__ = ["CurrentObjective"]


_REMEMBERED = 4
"""Log-scales whose sums are kept: a cycle asks again for those it starts from, and those it has tried."""


class _Recent:
    """Keeps the last values by log-scales: solvers ask for several things in one place, and each would be a pass.

    Also what an executor has prepared for these matrices, and the entries that have decided for p = inf.
    """

    def __init__(self) -> None:
        self.deciding: Deciding | None = None
        self._known: list[tuple[Tensor | None, int, Tensor]] = []
        self._prepared: ObjectiveSums | None = None

    def prepared(self, make: Callable[[], ObjectiveSums]) -> ObjectiveSums:
        """Returns what is prepared; makes and keeps it if there is nothing."""
        if self._prepared is None:
            self._prepared = make()
        return self._prepared

    def get(self, log_scales: Tensor | None, make: Callable[[Tensor | None], Tensor]) -> Tensor:
        """Returns the value for these log-scales; makes and keeps it if there is none."""
        version = _version(log_scales)
        for place, at, value in self._known:
            if at == _version(place) and (place is log_scales or _are_equal(place, log_scales)):
                return value
        value = make(log_scales)
        # Those of the weights as they are: reports compare with them at the end.
        first = [one for one in self._known[_REMEMBERED - 1 :] if one[0] is None]
        self._known = [(log_scales, version, value), *self._known[: _REMEMBERED - 1], *first]
        return value


def _version(log_scales: Tensor | None) -> int:
    """Returns how often log-scales have been changed in place; an inference tensor does not know, and none is changed here."""
    return 0 if log_scales is None or log_scales.is_inference() else log_scales._version


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two log-scales are known to be the same numbers; None is 0. On other devices the answer would be waited for."""
    if one is None or other is None:
        given = one if other is None else other
        return given is None or (given.device.type == "cpu" and not bool(given.any()))
    return one.device.type == other.device.type == "cpu" and one.dtype == other.dtype and torch.equal(one, other)


class _Looks:
    """Counts how often solvers have looked at all entries, of an objective and of all that are made of it."""

    number = 0


@dataclass(frozen=True)
class CurrentObjective:
    """The objective at the current weights, as an `fxenorm.solve.objective.Objective`.

    Of a model that is spread over processes, program and matrices are those of this process's part, and every number that is
    asked for is that of all.

    Attributes:
        backend, program: the executor and its program.
        matrices: as `Backend.matrices` returns them.
        held: (K,) bool: variables that stay at 0.
        limit: (2, K) how far log-scales may go up and down, may be infinite; or (K,) for both.
        groups: (K,) int64: the group of each variable, numbered in the order in which Gauss-Seidel takes them; None: one group.
        order: returns the groups as that takes them, for the program on its device; None: they are worked out, on a CPU.
        whole: the program of all counted tensors; None: `program` is it.
        positions: (blocks of the program,) the place of each in `whole`; None: their own.
        sums: makes sums of all processes from those of this one.
    """

    backend: Backend
    program: ReduceProgram
    matrices: Sequence[Tensor]
    held: Tensor
    limit: Tensor
    groups: Tensor | None = None
    order: Callable[[ReduceProgram], GroupOrder] | None = None
    whole: ReduceProgram | None = None
    positions: Tensor | None = None
    sums: Sums = field(default_factory=OwnSums)
    _recent: _Recent = field(default_factory=_Recent, repr=False, compare=False)
    _looks: _Looks = field(default_factory=_Looks, repr=False, compare=False)

    @property
    def p(self) -> float:
        """The norm's exponent, > 0 or infinite."""
        return self.program.p

    @property
    def whole_program(self) -> ReduceProgram:
        """The program of all counted tensors, whatever part of them this process reads."""
        return self.program if self.whole is None else self.whole

    @property
    def is_empty(self) -> bool:
        """Whether no entry is counted, so that F is 0."""
        return not self.whole_program.blocks

    @property
    def looks(self) -> int:
        """The number of times that single entries were looked for among all, also for the same with another limit or exponent."""
        return self._looks.number

    @property
    def degree(self) -> Tensor:
        """(K,) A_k of a Jacobi cycle, by variable."""
        return self.program.degree

    def within(self, limit: Tensor) -> CurrentObjective:
        """Returns the same objective within another limit."""
        return replace(self, limit=limit)

    @cached_property
    def labels(self) -> Tensor:
        """(K,) the group of each variable."""
        return torch.zeros_like(self.held, dtype=torch.int64) if self.groups is None else self.groups

    def log_sums(self, log_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (K,) log N and log P after a rescaling by `log_scales`, natural logarithms."""
        return self.sums.pair("sums", lambda: self.own_log_sums(log_scales), self.held.numel())

    def own_log_sums(self, log_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (K,) log N and log P of this process's part, after a rescaling by `log_scales`."""
        sums = channel_sums(self.program, self.contributions(log_scales))
        return sums.log_negative, sums.log_positive

    def contributions(self, log_scales: Tensor | None = None) -> Tensor:
        """Returns (slots,) the logarithms of the channel sums of each tensor; see `Backend.contributions`."""
        return self._recent.get(log_scales, self._prepared.contributions)

    @property
    def _prepared(self) -> ObjectiveSums:
        """What the executor has prepared for these matrices."""
        return self._recent.prepared(lambda: self.backend.objective_sums(self.program, self.matrices))

    def energies(self, log_scales: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns, by rescaling, (counted tensors,) log sum |w|^p without layer weights; p = inf: log max |w|."""
        count = len(self.whole_program.blocks)
        return self.sums.blocks(
            lambda: [self._own_energies(scales) for scales in log_scales], len(log_scales), self.positions, count
        )

    def _own_energies(self, log_scales: Tensor | None) -> Tensor:
        """Returns (blocks,) as `Backend.energies` does: all channels of one side together are all of a tensor."""
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
        """Returns, by rescaling, the 0-d log F; p = inf: the log of the largest entry."""
        found = [energies + self.whole_program.log_weights for energies in self.energies(log_scales)]
        return [logs.amax(0) if math.isinf(self.p) else logs.logsumexp(0) for logs in found]

    def log_objective(self, log_scales: Tensor | None = None) -> Tensor:
        """Returns the 0-d log F after one rescaling; see `log_objectives`."""
        return self.log_objectives([log_scales])[0]

    def norm(self, log_scales: Tensor | None = None) -> Tensor:
        """Returns the 0-d norm F ** (1 / p); p = inf: the largest entry; 0 if nothing is counted."""
        if self.is_empty:
            return self.program.degree.new_zeros(())
        logs = self.log_objective(log_scales)
        return logs.exp() if math.isinf(self.p) else (logs / self.p).exp()

    def imbalance(self, log_scales: Tensor | None = None) -> float:
        """Returns max_k |log(N_k / P_k)| / p after a rescaling, over the variables that are not held."""
        return float(imbalance(*self.log_sums(log_scales), self.p, self.held))

    def curvature(self, log_scales: Tensor, log_diagonal: Tensor, free: Tensor) -> Operator:
        """Returns the Hessian in the variables `free`, relative to p^2 exp(log_diagonal); see `ObjectiveSums.curvature`."""
        return self.sums.operator(self._prepared.curvature(log_scales, log_diagonal, free))

    def without_memory(self) -> CurrentObjective:
        """Returns the same, with nothing kept of what was worked out: for other matrices than it had."""
        return replace(self, _recent=_Recent())

    def stacked(self) -> CurrentObjective:
        """Returns the same objective with few large matrices for many small ones: for solvers that look at all at once.

        Itself where several processes tell one another sums, which are made for the tensors one by one.
        """
        if self.sums.is_shared:
            return self
        program, matrices = stacked(self.program, self.matrices)
        return (
            self if program is self.program else replace(self, program=program, matrices=matrices, order=None, _recent=_Recent())
        )

    def softened(self, p: float, *, start: bool = False) -> CurrentObjective | None:
        """Returns the same weights (of summed kernels: the kernels' norms) with a smaller exponent.

        None for large float64 weights, whose powers or logarithms are kept: others would need more room beside them. For a start,
        those whose logarithms are kept are taken in float32, half as much room again. None too where processes tell one another
        sums, which are made for one exponent.

        Args:
            p: the smaller exponent.
            start: whether it is for a start alone, which is worth that room. For p = inf it always is.
        """
        if math.isinf(self.p):
            return self._of_maxima(p)
        full = any(map(is_full, self.program.blocks, self.matrices))
        if self.sums.is_shared or (full and (is_linear(self.p) or not start)):
            return None
        share = p / self.p
        own = self.program.log_weights
        sizes = torch.tensor([block.slots for block in self.program.blocks], dtype=torch.int64, device=own.device)
        offsets = self.program.offsets + (share - 1) * own.repeat_interleave(sizes)
        program = replace(self.program, p=p, offsets=offsets, log_weights=share * own, _copies={}, _parts={})
        if is_linear(self.p):
            matrices = [matrix if is_narrow(matrix) else resized(self.p, p, matrix) for matrix in self.matrices]
        else:
            pairs = zip(program.blocks, self.matrices, strict=True)
            matrices = [powers_of_maxima(p, block, each, times=self.p) for block, each in pairs]
        return replace(self, program=program, matrices=matrices, order=None, _recent=_Recent())

    def _of_maxima(self, p: float) -> CurrentObjective | None:
        """Returns the same weights (of kernels: their largest entries) with a finite exponent, without layer weights.

        It is for starts. Large float64 weights are taken in float32, so that they need half as much room again; entries in which
        two terms meet count once, whatever their exponent.
        """
        if self.sums.is_shared:
            return None
        sizes = [block.slots for block in self.program.blocks]
        offsets = torch.zeros_like(self.program.offsets)
        for block, own in zip(self.program.blocks, torch.split(offsets, sizes), strict=True):
            terms = [value for value, ids in block.terms for _ in range(ids.numel())]
            own[: len(terms)] = torch.tensor(terms, dtype=own.dtype, device=own.device).abs().log()
        program = replace(self.program, p=p, offsets=offsets, _copies={}, _parts={})
        matrices = [powers_of_maxima(p, block, each) for block, each in zip(program.blocks, self.matrices, strict=True)]
        return replace(self, program=program, matrices=matrices, order=None, _recent=_Recent()).stacked()

    def largest_entries(self, log_scales: Floats, count: int) -> Entries:
        """Returns so many of the largest entries of each channel of each tensor after a rescaling; for p = inf.

        Args:
            log_scales: (K,) natural logarithms.
            count: how many of each channel.
        """
        self._looks.number += 1
        return joined(self.sums.gathered(lambda: largest_entries(self._prepared, log_scales, count)))

    def entries_where(self, log_scales: Floats, least: Floats, choose: Callable[[Entries], Mask]) -> Entries:
        """Returns those of all entries above a value after a rescaling that are chosen; for p = inf.

        Args:
            log_scales: (K,) natural logarithms.
            least: (K,) values by variable, natural logarithms: an entry is to be above the least of those of its variables.
            choose: returns (n,) which of some entries to keep.
        """
        self._looks.number += 1
        return joined(self.sums.gathered(lambda: entries_where(self._prepared, log_scales, least, choose)))

    def remember(self, entries: Deciding) -> None:
        """Keeps the entries that have decided for p = inf, also for the same with another limit."""
        self._recent.deciding = entries

    def remembered(self) -> Deciding | None:
        """Returns the entries that decided last; None: nobody has left any."""
        return self._recent.deciding

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Floats) -> tuple[Floats, Ids, Floats] | None:
        """Contracts the bottleneck cycles of a graph in compiled code; None: there is none. See `Backend.contraction`."""
        return self.backend.contraction(count, tails, heads, lengths)

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the objective as a function of one scalar a label; see `ObjectiveSums.aggregate`."""
        return self.sums.entries(lambda: self._prepared.aggregate(log_scales, labels, count), log_scales, labels)

    @cached_property
    def group_updates(self) -> tuple[GroupUpdate, ...]:
        """The groups in the order of Gauss-Seidel; each reads only the tensors that carry one of its variables.

        Sums of several processes are one collective a group; a process may hold no part of a group.
        """
        groups = self._order.groups
        if not self.sums.is_shared:
            return tuple(self._update(number, group.variables, group) for number, group in enumerate(groups))
        own = {int(self.labels[group.variables[0]]): group for group in groups}
        slots, count = self.whole_program.slots, self.whole_program.num_scales
        labels = torch.unique(self.labels[slots[slots < 2 * count] % max(count, 1)]).tolist()
        return tuple(self._update(label, (self.labels == label).nonzero().reshape(-1), own.get(label)) for label in labels)

    @cached_property
    def _order(self) -> GroupOrder:
        """The groups, on the device of the sums."""
        if self.order is not None:
            return self.order(self.program)
        return group_order(self.program, self.labels.numpy())

    def _update(self, label: int, variables: Tensor, group: GroupSums | None) -> GroupUpdate:
        """Returns the update of one group, of which this process may hold no part."""
        matrices = [] if group is None else [self.matrices[number] for number in group.numbers]

        def sums(log_scales: Tensor) -> tuple[Tensor, Tensor]:
            """Returns (n,) log N and log P of the group's variables."""

            def own() -> tuple[Tensor, Tensor]:
                """Sums this process's part of the group."""
                if group is None:
                    nothing = log_scales.new_full((variables.numel(),), -math.inf)
                    return nothing, nothing
                found = self.backend.sums(group.program, matrices, log_scales)
                return found.log_negative, found.log_positive

            return self.sums.pair(f"group {label}", own, variables.numel())

        return GroupUpdate(variables, sums)

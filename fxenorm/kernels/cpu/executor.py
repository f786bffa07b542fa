"""The executor for CPUs: two calls into compiled code, whatever the number of tensors; what that cannot do is done eagerly."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import OptionError
from ..backend import CycleRunner, CycleTask, Ids, ObjectiveSums, Values, register_backend
from ..memory import has_plain_memory
from ..program import ChannelSums, ReduceProgram, ScaleTarget
from ..reference.channel_sums import is_linear, is_narrow, power_matrix
from ..reference.executor import EagerBackend, by_device
from ..rooms import least_and_largest, leaving, rounded
from ..writes import Write, carry_out
from .build import BuildError, library
from .cycle_runner import CompiledCycles
from .step_table import StepTable
from .sums.line_sums import line_sums
from .sums.objective_sums import CompiledSums
from .tables import TYPES, ReduceTable, ScaleTable, reduce_signature

__all__ = ["CompiledBackend"]

_KEPT = 4
"""Tables kept at a time. A plan that is used on one module needs one of each; four serve a model with copies that take turns."""


_ALONE_UP_TO = 1 << 17
"""Entries of which one thread finds the ends faster than several would be woken; a bound by estimate."""


class CompiledBackend(EagerBackend):
    """See `Backend`. Tables of addresses are made at the first call and used as long as the tensors stay where they are.

    Tensors on other devices, in other types than float64, 32, bfloat16 and 16, with gaps in memory, or whose exponents are no
    rows and columns are left to the eager executor.
    """

    name = "compiled"

    def __init__(self) -> None:
        self.library = library()
        self._reduce: list[ReduceTable] = []
        self._scale: list[ScaleTable] = []

    @torch.no_grad()
    def reduce(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> ChannelSums:
        """Returns N and P of the weights as they are."""
        if program.slots.device.type != "cpu":
            return super().reduce(program, tensors, factors)
        table = self._reduce_table(program, tensors, factors)
        found = table.run(self.library, factors)
        if found is None:
            return super().reduce(program, tensors, factors)
        negative, positive = found
        if table.unsupported:
            rest = list(table.unsupported)
            sums = super().reduce(program.part(rest), [tensors[index] for index in rest], [factors[index] for index in rest])
            join = torch.maximum if math.isinf(program.p) else torch.logaddexp
            negative, positive = join(negative, sums.log_negative), join(positive, sums.log_positive)
        return ChannelSums(negative, positive)

    @torch.no_grad()
    def matrices(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns by block |w|^p summed over the kernel axes; large tensors of which only lines are summed, in compiled code."""
        found: list[Tensor] = []
        for block, tensor, factor in zip(program.blocks, tensors, factors, strict=True):
            lines = line_sums(self.library, program.p, block, tensor) if factor is None else None
            found.append(power_matrix(program.p, block, tensor, factor) if lines is None else lines)
        return found

    @torch.no_grad()
    def has_zeros(self, p: float, matrix: Tensor) -> bool:
        """Returns whether any entry stands for a weight of zero, from one compiled pass."""
        plain = matrix.device.type == "cpu" and has_plain_memory(matrix) and matrix.is_contiguous() and matrix.dtype in TYPES
        if not plain or not (is_linear(p) or is_narrow(matrix)):
            return super().has_zeros(p, matrix)
        return bool(self.library.fxenorm_zeros(matrix.data_ptr(), matrix.numel(), matrix.itemsize, _threads_for(matrix)))

    @torch.no_grad()
    def objective_sums(self, program: ReduceProgram, matrices: Sequence[Tensor]) -> ObjectiveSums:
        """Returns the sums of matrices, all tensors of rows by columns in one call."""
        if program.slots.device.type != "cpu":
            return super().objective_sums(program, matrices)
        return CompiledSums(self.library, program, matrices, self.contributions)

    @torch.no_grad()
    def writes(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> list[Write]:
        """Returns one write for all that the kernels multiply, with the reference executor's roundings, and those of the rest."""
        table = self._scale_table(targets, frozenset())
        rest = super().writes(table.unsupported, log_scales)
        return [_TableWrite(self.library, table, log_scales.cpu()), *rest] if table.members else rest

    def cycles(self, task: CycleTask) -> CycleRunner | None:
        """Prepares whole cycles in one call; None where the kernels do not cover all tensors."""
        if task.held.device.type != "cpu":
            return None
        table = StepTable(task)
        return CompiledCycles(self.library, table, task) if table.covers_all else None

    def refusals(self, task: CycleTask) -> list[str]:
        """Returns why the kernels do not run whole cycles of a task, each reason once."""
        if task.held.device.type != "cpu":
            return [f"the model is on {task.held.device}"]
        return StepTable(task).refusals

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Values) -> tuple[Values, Ids, Values] | None:
        """Contracts the bottleneck cycles of a graph in one call; None where memory does not suffice."""
        arcs = [np.ascontiguousarray(part, dtype) for part, dtype in zip((tails, heads, lengths), "qqd", strict=True)]
        offsets, line, gaps = np.empty(count), np.empty(count, dtype=np.int64), np.empty(count)
        places = [part.ctypes.data for part in (*arcs, offsets, line, gaps)]
        done = self.library.fxenorm_contract(count, len(arcs[0]), *places)
        return (offsets, line, gaps[:-1]) if done else None

    def applies_within(self, device: torch.device) -> bool:
        """Returns whether the targets are on the CPU, where kernels look at what they write."""
        return device.type == "cpu"

    @torch.no_grad()
    def apply_within(self, targets: Sequence[ScaleTarget], log_scales: Tensor, counted: frozenset[str]) -> bool:
        """Does what `apply` does, unless an entry would leave its type's range; then nothing changes and the answer is False.

        What has been multiplied when such an entry is met is divided again, so that it may differ in its last bit.

        Args:
            targets: everything that follows.
            log_scales: (K,) natural logarithms, on the CPU.
            counted: names of the targets of which sums have just been taken.
        """
        table = self._scale_table(targets, counted)
        if not table.unsupported:
            return table.run(self.library, log_scales, within=True)
        up, down = self.rooms(table.unsupported, log_scales.numel(), torch.device("cpu"))
        if not bool(((log_scales <= up) & (log_scales >= -down)).all()):
            return False
        whole = _TableWrite(self.library, table, log_scales, within=True)
        try:
            carry_out([whole, *super().writes(table.unsupported, log_scales)])
        except _NoRoom:
            return False
        return True

    @torch.no_grad()
    def leaving(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """Returns (K,) the variables that carry an entry out of its room."""
        flagged = leaving(targets, by_device(log_scales), log_scales.numel(), self.least_and_largest)
        return flagged.to(log_scales.device)

    @torch.no_grad()
    def rounded(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> int:
        """Returns how many entries lose digits that powers of two should leave."""
        return rounded(targets, by_device(log_scales), self.least_and_largest)

    def least_and_largest(self, target: ScaleTarget) -> tuple[float, float]:
        """Returns the least size of an entry that is not 0, and the largest, from one compiled pass."""
        tensor = target.tensor
        plain = tensor.device.type == "cpu" and has_plain_memory(tensor) and tensor.is_contiguous() and tensor.dtype in TYPES
        if not plain or target.offset:
            return least_and_largest(target)
        found = (ctypes.c_double * 2)()
        self.library.fxenorm_ends(tensor.data_ptr(), tensor.numel(), TYPES[tensor.dtype], found, _threads_for(tensor))
        return found[0], found[1]

    def _reduce_table(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> ReduceTable:
        """Returns the table for these tensors where they are; makes it where it is not there yet."""
        signature = reduce_signature(tensors, factors)
        for table in self._reduce:
            if table.program is program and table.signature == signature:
                return table
        table = ReduceTable(program, tensors, factors, signature)
        self._reduce = [table, *self._reduce[: _KEPT - 1]]
        return table

    def _scale_table(self, targets: Sequence[ScaleTarget], counted: frozenset[str]) -> ScaleTable:
        """Returns the table for this very list of targets where they are; makes it where it is not there yet."""
        for table in self._scale:
            if table.serves(targets, counted):
                return table
        table = ScaleTable(targets, counted)
        self._scale = [table, *self._scale[: _KEPT - 1]]
        return table


def _threads_for(tensor: Tensor) -> int:
    """Returns how many threads read a tensor."""
    return 1 if tensor.numel() <= _ALONE_UP_TO else torch.get_num_threads()


class _NoRoom(Exception):
    """Raised where an entry would leave its type's range, and nothing has changed."""


class _TableWrite(Write):
    """The write of all that one call of the kernels multiplies."""

    def __init__(self, library: ctypes.CDLL, table: ScaleTable, log_scales: Tensor, *, within: bool = False) -> None:
        super().__init__([target.name for target in table.members], [target.tensor for target in table.members])
        self._library, self._table, self._log_scales, self._within = library, table, log_scales, within

    def watch(self) -> None:
        """Notes that no tile is done."""
        self._table.done[:] = -1

    def forward(self) -> None:
        """Multiplies all tensors of the table in one call."""
        if not self._table.run(self._library, self._log_scales, within=self._within):
            self.watch()
            raise _NoRoom

    def backward(self) -> None:
        """Divides all tensors of the table in one call."""
        self._table.run(self._library, -self._log_scales, within=False)

    def happened(self) -> bool:
        """Whether the kernels have run: every tile then says how many of its rows are done."""
        return bool((self._table.done >= 0).all())


def make_compiled() -> EagerBackend:
    """Returns the compiled executor, and waits for its kernels.

    Raises:
        OptionError: it cannot be compiled here; why.
    """
    try:
        return CompiledBackend()
    except BuildError as error:
        raise OptionError(f"backend='compiled' does not work here: {error}; use backend='eager'") from error


register_backend("compiled", make_compiled)

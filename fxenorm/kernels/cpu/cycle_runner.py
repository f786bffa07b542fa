"""Runs cycles with the compiled kernels, one call for all of them: the runner that the executor for CPUs prepares."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from ..backend import CycleTask
from ..program import ScaleTarget
from .cycles_table import CyclesTable
from .step_table import StepTable

__all__ = ["CompiledCycles"]


class CompiledCycles:
    """See `CycleRunner`. Several cycles have a table of their own, which is made when they are first asked for.

    Args:
        library: the compiled kernels.
        step: the table of one cycle, which covers all of the task.
        task: what is run.
    """

    def __init__(self, library: ctypes.CDLL, step: StepTable, task: CycleTask) -> None:
        self._library, self._step, self._task = library, step, task
        self._several: CyclesTable | None = None

    def run(self, factors: Sequence[Tensor | None], count: int, gate: Tensor | None = None) -> bool:
        """Runs some cycles; False where there is a gate, or the kernels cannot do it or have given up: nothing changes then.

        Args:
            factors: by what the counted tensors are multiplied before their norm is taken.
            count: how many cycles.
            gate: the kernels know of none.
        """
        if gate is not None:
            return False
        if count == 1 and self._task.groups is None:
            return self._step.run(self._library, factors)
        table = self._table_of_several()
        return table.covers_all and table.run(self._library, factors, count)

    def _table_of_several(self) -> CyclesTable:
        """Returns the table of several cycles; made once."""
        if self._several is None:
            self._several = CyclesTable(self._step, self._task)
        return self._several

    def refusals(self, count: int) -> list[str]:
        """Returns why so many cycles are left to others, each reason once.

        Args:
            count: how many.
        """
        return [] if count == 1 and self._task.groups is None else self._table_of_several().refusals

    def exchange(self, pairs: Sequence[tuple[ScaleTarget, ScaleTarget]]) -> bool:
        """Takes other tensors in the places of some targets.

        Args:
            pairs: a target, and the one in its place.
        """
        self._step.exchange(pairs, self._task)
        return True

"""What one `Plan.step` has looked up and checked, for the next: steps repeat, models and optimizers seldom change."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.agreement import Statement
from ..kernels.cpu.cycles_table import CyclesTable
from ..kernels.cpu.executor import CompiledBackend
from ..kernels.cpu.step_table import StepTable
from ..kernels.gpu.executor import TritonBackend
from ..kernels.gpu.step import TritonStep
from ..kernels.memory import has_plain_memory
from ..kernels.program import ScaleTarget
from ..solve.jacobi import jacobi_step
from ..weights.tracked import Tracked
from ..weights.weights import Snapshot

__all__ = ["PreparedStep"]

_GROWTH = math.log(1e6)
"""Larger growth in one step is left to the eager executor, which first finds the room that every variable has."""

_FREE_OPTIONS = frozenset({"params", "lr"})
"""Options of an optimizer's groups that may change from step to step: no rule for its state depends on the learning rate."""


class PreparedStep:
    """A snapshot and its targets, as long as nothing that they depend on has changed.

    Args:
        snapshot: the model's tensors, checked.
        model: its module.
        optimizers: those whose state follows.
        tracked: the copies that follow.
        targets: what `Snapshot.targets` found for all of them.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        tracked: Sequence[Tracked],
        targets: list[ScaleTarget],
    ) -> None:
        self.snapshot, self.targets = snapshot, targets
        self._tracked = tuple(tracked)
        self._optimizers = tuple(optimizers)
        analysis = snapshot.analysis
        counted = {item.parameter for item in analysis.objective.counted}
        self._counted = frozenset(target.name for target in targets if target.name in counted)
        self._reach = float(analysis.reach.max(initial=2))
        self._held = snapshot.held_mask()
        self._moves_by_powers = snapshot.powers_of_two() is not None
        limit = analysis.most_log_scale
        self._most = math.inf if limit is None else limit
        self._table: StepTable | None = None
        self._cycles_table: CyclesTable | None = None
        self._triton_step: TritonStep | None = None
        self._factors: list[Tensor | None] = []
        self.statements: dict[tuple[str, ...], Statement] = {}
        """By call, what this process tells others of it."""
        # Everything by which the model or the optimizers could come to hold other tensors.
        tensors = snapshot.read_tensors()
        read = {id(tensor) for tensor in tensors}
        self._dicts: list[dict[Any, Any]] = []
        for module in model.modules():
            # Where there is nothing, something new would be none of the plan's.
            self._dicts += [entries for entries in (module._modules, module._parameters) if entries]
            if any(id(buffer) in read for buffer in module._buffers.values()):
                self._dicts.append(module._buffers)
        for optimizer in optimizers:
            self._dicts.append(optimizer.state)
        watched = [copy.watched() for copy in tracked]
        self.repeatable = snapshot.repeatable and None not in watched
        """Whether the next step may use it."""
        self._dicts += [entries for dicts, _ in filter(None, watched) for entries in dicts]
        self._lists = [(listed, list(listed)) for _, listed in filter(None, watched)]
        self._entries = list(_values(self._dicts))
        self._lengths = list(map(len, self._dicts))
        self._parameters = list({id(parameter): parameter for parameter in model.parameters()}.values())
        self._flags = list(map(attrgetter("requires_grad"), self._parameters))
        self._tensors = list(
            {id(tensor): tensor for tensor in (*tensors, *self._parameters, *snapshot.copied_tensors())}.values()
        )
        # Of tensors without memory of their own no address tells whether they are still the same.
        self.repeatable = self.repeatable and all(map(has_plain_memory, (*self._tensors, *(t.tensor for t in targets))))
        self._places = _places(self._tensors) if self.repeatable else None
        self._states = [state for optimizer in optimizers for state in optimizer.state.values() if isinstance(state, dict)]
        self._state_values = list(_values(self._states))
        self._state_lengths = list(map(len, self._states))
        self._state_tensors = [target.tensor for target in targets[len(snapshot.tensors) :]]
        self._state_addresses = _addresses(self._state_tensors) if self.repeatable else None
        self._groups = [_group(group) for optimizer in optimizers for group in optimizer.param_groups]
        self._members = [list(group["params"]) for optimizer in optimizers for group in optimizer.param_groups]

    def holds(self, optimizers: Sequence[Optimizer], tracked: Sequence[Tracked]) -> bool:
        """Whether a new look at model, optimizers and copies would find the same; reads no values and writes nothing."""
        return (
            _same(self._optimizers, optimizers)
            and _same(self._tracked, tracked)
            and all(_same(listed, known) for listed, known in self._lists)
            and list(map(len, self._dicts)) == self._lengths
            and all(map(is_, _values(self._dicts), self._entries))
            and list(map(attrgetter("requires_grad"), self._parameters)) == self._flags
            and _places(self._tensors) == self._places
            and list(map(len, self._states)) == self._state_lengths
            and _same_values(_values(self._states), self._state_values)
            and _addresses(self._state_tensors) == self._state_addresses
            and self._same_groups(optimizers)
        )

    def run(self, cycles: int, gate: Tensor | None = None) -> None:
        """Moves the weights: with the compiled kernels where they can do it, else as `Snapshot.cycles` does.

        Args:
            cycles: how many.
            gate: 0-d bool on the device: nothing moves where it is False.
        """
        analysis, backend = self.snapshot.analysis, self.snapshot.backend
        jacobi = not analysis.options.solver.endswith("gauss-seidel")
        plain = jacobi and not self._moves_by_powers
        on_cpu = self.snapshot.device.type == "cpu"
        if plain and on_cpu and gate is None and isinstance(backend, CompiledBackend) and self._run_compiled(backend, cycles):
            return
        if plain and isinstance(backend, TritonBackend) and self._run_triton(backend, cycles, gate):
            return
        scales = self.snapshot.cycles(self.targets, cycles)
        self.snapshot.apply(self.targets, scales if gate is None else scales * gate.to(scales))

    def _run_compiled(self, backend: CompiledBackend, cycles: int) -> bool:
        """In one call, or one cycle in two, if no entry leaves its type's range; else nothing changes and the answer is False."""
        table = None if self.snapshot.analysis.objective.folds_biases else self._whole_table()
        if table is None or not table.complete:
            return cycles == 1 and self._run_in_two(backend)
        if cycles == 1:
            return table.run(backend, self._row_factors())
        if self._cycles_table is None:
            self._cycles_table = CyclesTable(table, self.snapshot.program, *self.snapshot.gather())
        return self._cycles_table.complete and self._cycles_table.run(backend, self._row_factors(), cycles)

    def _run_triton(self, backend: TritonBackend, cycles: int, gate: Tensor | None) -> bool:
        """In a handful of launches, if the kernels serve the device; else nothing is changed and the answer is False."""
        snapshot = self.snapshot
        if not backend.serves(snapshot.device) or snapshot.analysis.objective.folds_biases:
            return False
        if self._triton_step is None:
            tensors, self._factors = snapshot.gather()
            self._triton_step = TritonStep(
                *(snapshot.analysis.objective.program, tensors, self._factors, self.targets),
                own=len(snapshot.tensors),
                held=self._held,
                limit=self._most,
            )
        return self._triton_step.run(self._row_factors(), cycles, gate)

    def _whole_table(self) -> StepTable:
        """What one cycle in one call needs; made once."""
        if self._table is None:
            tensors, self._factors = self.snapshot.gather()
            self._table = StepTable(
                *(self.snapshot.program, tensors, self._factors, self.targets, self._counted),
                own=len(self.snapshot.tensors),
                held=self._held,
                limit=self._most,
                growth=_GROWTH,
                reach=self._reach,
            )
        return self._table

    def _row_factors(self) -> list[Tensor | None]:
        """The factors of folded BatchNorms as they are now."""
        return self.snapshot.gather()[1] if self.snapshot.analysis.objective.folds else self._factors

    def _run_in_two(self, backend: CompiledBackend) -> bool:
        """One cycle in two calls, if no entry leaves its type's range; else nothing is changed and the answer is False."""
        program, sums = self.snapshot.program, self.snapshot.sums()
        limit = torch.full_like(program.degree, self._most)
        scales = jacobi_step(sums.log_negative, sums.log_positive, program.degree, program.p, self._held, limit)
        growth = self._reach * float(np.abs(scales.numpy()).max()) if scales.numel() else 0.0
        if growth == 0.0:
            return True
        with self.snapshot.journal.kept():
            return growth <= _GROWTH and backend.apply_within(self.targets, scales, self._counted)

    def _same_groups(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether the optimizers' groups hold the same parameters under the same options."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        if len(groups) != len(self._groups):
            return False
        return all(
            _same(group["params"], members) and _same_values(_group(group), known)
            for group, members, known in zip(groups, self._members, self._groups, strict=True)
        )


def _values(dicts: Iterable[dict[Any, Any]]) -> Iterable[Any]:
    """All values of some dicts, in order."""
    return chain.from_iterable(map(dict.values, dicts))


def _group(group: dict[str, Any]) -> list[Any]:
    """The options of a group of an optimizer that may matter to its state."""
    return [value for key, value in group.items() if key not in _FREE_OPTIONS]


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


def _same_values(some: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether tensors are the same objects, and everything else is equal or a number that counts steps."""
    for one, other in zip(some, others, strict=True):
        if one is other:
            continue
        if isinstance(one, Tensor) or isinstance(other, Tensor) or type(one) is not type(other):
            return False
        if not isinstance(one, (bool, int, float, str, tuple)) or (isinstance(one, (bool, str)) and one != other):
            return False
        if isinstance(one, tuple) and not _same(one, other):
            return False
    return True


def _places(tensors: Sequence[Tensor]) -> tuple[array[int], list[torch.dtype]]:
    """By tensor, where it lies, how, and of what type and shape it is; numbers in one piece of memory, which is read faster."""
    numbers = _addresses(tensors)
    numbers.extend(chain.from_iterable(map(Tensor.stride, tensors)))
    numbers.extend(chain.from_iterable(map(attrgetter("shape"), tensors)))
    return numbers, list(map(attrgetter("dtype"), tensors))


def _addresses(tensors: Sequence[Tensor]) -> array[int]:
    """By tensor, where it lies."""
    return array("q", map(Tensor.data_ptr, tensors))

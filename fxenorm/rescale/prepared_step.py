"""The lookups of one step, checked and kept for the next: steps repeat, models and optimizers seldom change."""

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

from ..analysis.folded.factors import RepeatedFactors
from ..distributed.agreement import Statement
from ..kernels.backend import Backend, CycleRunner, CycleTask
from ..kernels.memory import has_plain_memory
from ..kernels.program import ScaleTarget
from ..solve.jacobi import jacobi_step, kept_of_a_cycle
from ..weights.targets import Targets
from ..weights.tracked import Tracked
from ..weights.weights import Weights
from .cycles import CycleKind
from .cycles import cycles as run_cycles
from .prepared.gradients import FollowedGradients
from .prepared.path import Path

__all__ = ["PreparedStep"]

_FREE_OPTIONS = frozenset({"params", "lr"})
"""Options of an optimizer's groups that may change from step to step: no rule for its state depends on the learning rate."""


class PreparedStep:
    """Weights and what is multiplied, as long as nothing that they depend on has changed.

    Args:
        weights: the model's tensors, checked.
        model: its module.
        optimizers: those whose state follows.
        tracked: the copies that follow.
        targets: all that is multiplied.

    Attributes:
        serves_next: whether the next step may use it.
        statements: by call, what this process tells others of it.
    """

    def __init__(
        self,
        weights: Weights,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        tracked: Sequence[Tracked],
        targets: Targets,
    ) -> None:
        self.weights, self.targets = weights, targets
        self.statements: dict[tuple[str, ...], Statement] = {}
        self._kind = CycleKind.of(weights, 1)
        self._task: CycleTask | None = None
        self._prepared: tuple[Backend, CycleRunner | None] | None = None
        self._factors: RepeatedFactors | None = None
        self._seen = Seen(weights, model, optimizers, tracked, [target.tensor for target in targets.tensors])
        self.serves_next = self._seen.notices_changes and targets.repeatable
        owners = targets.followers.owners
        known = owners if owners is None or self.serves_next else []
        self._gradients = None if known is None else FollowedGradients(known, targets.tensors, weights.read_tensors())

    def holds(self, optimizers: Sequence[Optimizer], tracked: Sequence[Tracked], grads: bool = False) -> bool:
        """Whether a new look at model, optimizers and copies would find the same; reads no values and writes none.

        Args:
            optimizers, tracked: those of now.
            grads: whether gradients follow; new ones are taken in the places of the last.
        """
        if grads != (self._gradients is not None) or not self._has_gradients():
            return False
        return self._seen.holds(optimizers, tracked)

    def _has_gradients(self) -> bool:
        """Whether the gradients that follow are those of the last step, or others that could take their places."""
        if self._gradients is None or self._gradients.are_same():
            return True
        tensors = self.targets.tensors
        found = self._gradients.exchanged(tensors)
        if found is None:
            return False
        exchanged = [(tensors[place], target) for place, target in found]
        for place, target in found:
            tensors[place] = target
        self._seen.take(tensors)
        runner = None if self._prepared is None else self._prepared[1]
        if runner is not None and not runner.exchange(exchanged):
            self._prepared = None
        return True

    def run(self, cycles: int, gate: Tensor | None = None, looks_far: bool = False) -> None:
        """Moves the weights: as the executor has prepared it where it can, else as the loop of cycles does.

        Args:
            cycles: how many.
            gate: 0-d bool on the device: nothing moves where it is False.
            looks_far: whether it is the turn of a step that looks for what single cycles leave.
        """
        if gate is not None and gate.device.type == "cpu":  # there is no device to wait for
            if not bool(gate):
                return
            gate = None
        far = looks_far and self._kind.leaves_some
        if not far and self._run_prepared(cycles, gate):
            return
        scales = run_cycles(self.weights, self.targets, cycles, looks_far)
        self.targets.apply(scales if gate is None else scales * gate.to(scales))

    def _run_prepared(self, cycles: int, gate: Tensor | None) -> bool:
        """Runs whole cycles, or one in two calls; False where the executor has no way for that, and then nothing changes."""
        backend, task, runner = self.weights.backend, self._the_task(), self._the_runner()
        if runner is not None:
            return runner.run(self._factors_now(task), cycles, gate)
        return cycles == 1 and gate is None and not self._kind.takes_groups and self._run_in_two(backend, task)

    def _factors_now(self, task: CycleTask) -> Sequence[Tensor | None]:
        """Returns the factors of the counted tensors: those of folded norms change from step to step."""
        counted = self.weights.analysis.counted
        if not counted.folds:
            return task.factors
        tensors = self.weights.tensors_for(counted)
        if self._factors is None:
            self._factors = counted.repeated_factors(tensors)
        return self._factors.now(tensors)

    def path(self, cycles: int = 1, looks_far: bool = False) -> Path:
        """Returns which code carries out such a step while all entries have room; for people, not for speed.

        Args:
            cycles, looks_far: as `run` takes them, without a gate.
        """
        if looks_far and self._kind.leaves_some:
            return Path.of(0, ["it looks for what single cycles leave"])
        backend, task, runner = self.weights.backend, self._the_task(), self._the_runner()
        if runner is not None:
            why = runner.refusals(cycles)
            return Path.of(0 if why else 1, why)
        folded = ["biases are counted with norms folded in"] if self.weights.analysis.counted.folds_biases else []
        in_two = cycles == 1 and not self._kind.takes_groups and backend.applies_within(self.weights.device)
        return Path.of(2 if in_two else 0, folded or backend.refusals(task))

    def _the_runner(self) -> CycleRunner | None:
        """Returns the cycles that the executor of now has prepared, made once; None: it has prepared none."""
        backend = self.weights.backend
        if self._prepared is None or self._prepared[0] is not backend:
            # Biases that are counted on folded norms are worked out anew each time: they do not stay where they are.
            stays = not self.weights.analysis.counted.folds_biases
            self._prepared = backend, backend.cycles(self._the_task()) if stays else None
        return self._prepared[1]

    def _the_task(self) -> CycleTask:
        """Returns what executors are asked to run; made once."""
        if self._task is None:
            weights, analysis = self.weights, self.weights.analysis
            counted = {item.parameter for item in analysis.counted.tensors}
            self._task = CycleTask(
                analysis.counted.program,
                *weights.gather(),
                self.targets.tensors,
                model_tensors=len(weights.tensors),
                gradients=0 if self._gradients is None else self._gradients.count,
                counted=frozenset(target.name for target in self.targets.tensors if target.name in counted),
                held=weights.held_mask(),
                limit=math.inf if analysis.most_log_scale is None else analysis.most_log_scale,
                reach=float(analysis.reach.max(initial=2)),
                powers_of_two=self._kind.powers_of_two,
                deadband=self._kind.deadband,
                groups=analysis.solver_groups.astype(np.int64) if self._kind.takes_groups else None,
            )
        return self._task

    def _run_in_two(self, backend: Backend, task: CycleTask) -> bool:
        """Runs one cycle in two calls; False where an entry would leave its type's range, and then nothing changes."""
        if not backend.applies_within(self.weights.device):
            return False
        program, (negative, positive) = self.weights.program, self.weights.log_sums()
        limit = torch.full_like(program.degree, task.limit)
        scales = jacobi_step(negative, positive, program.degree, program.p, task.held, limit)
        scales = kept_of_a_cycle(scales, task.powers_of_two, task.deadband)
        growth = task.reach * float(np.abs(scales.numpy()).max()) if scales.numel() else 0.0
        if growth == 0.0:
            return True
        with self.weights.journal.kept():
            return growth <= task.growth and backend.apply_within(self.targets.tensors, scales, task.counted)


class Seen:
    """Everything by which a model, optimizers and copies could come to hold other tensors, as it was when a step was prepared.

    Args:
        weights, model, optimizers, tracked: see `PreparedStep`.
        multiplied: the tensors of the targets, those of the model first.

    Attributes:
        notices_changes: whether a change of them would be seen.
    """

    def __init__(
        self,
        weights: Weights,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        tracked: Sequence[Tracked],
        multiplied: Sequence[Tensor],
    ) -> None:
        self._tracked, self._optimizers = tuple(tracked), tuple(optimizers)
        watched = [copy.watched() for copy in tracked]
        self._dicts = [*_dicts_of(weights, model, optimizers), *(one for dicts, _ in filter(None, watched) for one in dicts)]
        self._lists = [(listed, list(listed)) for _, listed in filter(None, watched)]
        self._entries, self._lengths = list(_values(self._dicts)), list(map(len, self._dicts))
        self._parameters = _distinct(model.parameters())
        self._flags = list(map(attrgetter("requires_grad"), self._parameters))
        self._tensors = _distinct([*weights.read_tensors(), *self._parameters, *weights.copied_tensors()])
        self._own_count = len(weights.tensors)
        self._state_tensors = list(multiplied[self._own_count :])
        # Of tensors without memory of their own no address tells whether they are still the same.
        self.notices_changes = weights.repeatable and None not in watched and _are_plain([*self._tensors, *multiplied])
        self._places = _places(self._tensors) if self.notices_changes else None
        self._states = [state for optimizer in optimizers for state in optimizer.state.values() if isinstance(state, dict)]
        self._state_values, self._state_lengths = list(_values(self._states)), list(map(len, self._states))
        self._state_addresses = _addresses(self._state_tensors) if self.notices_changes else None
        groups = _groups_of(optimizers)
        self._groups, self._members = list(map(_group, groups)), [list(group["params"]) for group in groups]

    def holds(self, optimizers: Sequence[Optimizer], tracked: Sequence[Tracked]) -> bool:
        """Whether a new look would find the same; reads no values and writes nothing."""
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

    def take(self, targets: Sequence[ScaleTarget]) -> None:
        """Takes other tensors than the model's own in the places of the last."""
        self._state_tensors = [target.tensor for target in targets[self._own_count :]]
        self._state_addresses = _addresses(self._state_tensors)

    def _same_groups(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether the optimizers' groups hold the same parameters under the same options."""
        groups = _groups_of(optimizers)
        if len(groups) != len(self._groups):
            return False
        return all(
            _same(group["params"], members) and _same_values(_group(group), known)
            for group, members, known in zip(groups, self._members, self._groups, strict=True)
        )


def _dicts_of(weights: Weights, model: nn.Module, optimizers: Sequence[Optimizer]) -> list[dict[Any, Any]]:
    """Returns the dicts of modules and optimizers that hold what a step reads and writes."""
    read = {id(tensor) for tensor in weights.read_tensors()}
    found: list[dict[Any, Any]] = []
    for module in model.modules():
        # Where there is nothing, something new would be none of the plan's.
        found += [entries for entries in (module._modules, module._parameters) if entries]
        if any(id(buffer) in read for buffer in module._buffers.values()):
            found.append(module._buffers)
    return [*found, *(optimizer.state for optimizer in optimizers)]


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether an address tells each tensor from every other."""
    return all(map(has_plain_memory, tensors))


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns each tensor once, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def _values(dicts: Iterable[dict[Any, Any]]) -> Iterable[Any]:
    """Returns the values of all dicts, in order."""
    return chain.from_iterable(map(dict.values, dicts))


def _groups_of(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """Returns the groups of all optimizers, in order."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def _group(group: dict[str, Any]) -> list[Any]:
    """Returns the options of an optimizer's group that may matter to its state."""
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
    """Returns by tensor address, strides, shape and type; the numbers in one piece of memory, which is read faster."""
    numbers = _addresses(tensors)
    numbers.extend(chain.from_iterable(map(Tensor.stride, tensors)))
    numbers.extend(chain.from_iterable(map(attrgetter("shape"), tensors)))
    return numbers, list(map(attrgetter("dtype"), tensors))


def _addresses(tensors: Sequence[Tensor]) -> array[int]:
    """Returns by tensor the address at which its entries begin."""
    return array("q", map(Tensor.data_ptr, tensors))

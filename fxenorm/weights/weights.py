"""The model's tensors at one call, checked, and what the executors need of them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..analysis.analysis import Analysis
from ..analysis.attained.exponent_rows import ExponentRows, exponent_rows
from ..analysis.attained.movable import Movable, free, movable, with_minimum
from ..analysis.held import Mask
from ..errors import OptimizerError
from ..kernels.backend import Backend
from ..kernels.factors import MOST_GROWTH
from ..kernels.program import ChannelSums, Keep, ReduceProgram, ScaleTarget, float_dtype
from ..kernels.rooms import are_far_from_ends
from ..optim.state import StateChoice, owned_by
from ..solve.iterate import move, round_limit
from ..solve.jacobi import jacobi_step
from ..solve.sweeps import gauss_seidel_sweep
from .followers import Followers, find_followers
from .journal import Journal
from .log_scales import refuse_overflow
from .objective import Problem
from .tensors import model_tensors, twins
from .tracked import Tracked, distinct
from .writable import refuse_unwritable
from .write_once import distinct_pairs, distinct_targets

__all__ = ["Snapshot", "Solved"]

T = TypeVar("T")

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Solved(Generic[T]):
    """Log-scales that were solved for.

    Attributes:
        snapshot: in whose basis they are.
        log_scales: (its variables,).
        result: what is reported.
    """

    snapshot: Snapshot
    log_scales: Tensor
    result: T


class Snapshot:
    """One call's view of the model. Making it reads names, shapes and flags only, and raises before anything is written.

    Args:
        analysis: the plan without its module.
        model: the module, without wrappers.
        tracked: copies that follow.

    Raises:
        BindError, RescaleError: see `model_tensors`.
    """

    def __init__(self, analysis: Analysis, model: nn.Module, tracked: Sequence[Tracked] = ()) -> None:
        self.analysis = analysis
        tensors = model_tensors(model, analysis.symmetry, analysis.objective.folded_names)
        self.tensors = {name: tensor for name, tensor in tensors.items() if name in analysis.symmetry.exponents}
        self._read = tensors
        self._twins = twins(model, analysis.symmetry)
        self._model = model
        self._given = [one.tensors(model) for one in tracked]
        self._copies = distinct(self._given)
        self._mastered = {name for one in tracked for name in one.masters(model)}
        self._followers = Followers()
        self.journal = Journal()
        self._held: Mask | None = None
        first = analysis.objective.counted[0].parameter if analysis.objective.counted else next(iter(self.tensors), None)
        self.device = tensors[first].device if first is not None else torch.device("cpu")

    @property
    def backend(self) -> Backend:
        """The executor to use now."""
        return self.analysis.backend

    @property
    def program(self) -> ReduceProgram:
        """The objective's program on the device where sums and log-scales live."""
        return self.analysis.objective.program.to(self.device)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Names of tensors that carry variables and are frozen; none where the model trains nothing (inference)."""
        if not any(parameter.requires_grad for parameter in self._model.parameters()):
            return frozenset()
        buffers = self.analysis.symmetry.buffers
        named = [item for tensors in (self.tensors, *self._twins) for item in tensors.items()]
        return frozenset(name for name, tensor in named if name not in buffers and not tensor.requires_grad)

    def _rounded(self) -> frozenset[str]:
        """Names of the tensors with an offset that would have to stay bit-identical, which offset + w does not."""
        choice, offsets = self.analysis.options.scales, self.analysis.symmetry.offsets
        if choice == "exact":
            return frozenset()
        return frozenset(name for name in offsets if choice == "pow2" or name in self._half)

    @cached_property
    def _half(self) -> frozenset[str]:
        """Names of the 16-bit tensors that are not rewritten from a wider copy."""
        return frozenset(name for name, tensor in self.tensors.items() if tensor.dtype in _HALF and name not in self._mastered)

    def movable(self) -> Movable:
        """Returns what `step` may move, by the graph and the flags."""
        return movable(self.analysis, self.frozen, self._rounded())

    def within(self, left: Movable | None = None) -> Snapshot:
        """The same tensors as `step` sees them: in the basis of what is left of the variables, by the graph and the flags.

        Args:
            left: what is left, where that is known otherwise.
        """
        left = self.movable() if left is None else left
        found = copy.copy(self)
        found._held = left.held
        if left.analysis is not self.analysis:
            # Nothing that is frozen moves there.
            found.frozen = frozenset()
            found.analysis = left.analysis
            moved = left.analysis.symmetry.exponents
            found.tensors = {name: tensor for name, tensor in self.tensors.items() if name in moved}
            found._copies, found._twins = (
                [{name: tensor for name, tensor in one.items() if name in moved} for one in others]
                for others in (self._copies, self._twins)
            )
            found._entered()
        return found

    def _entered(self) -> None:
        """Works out anew what depends on the basis."""

    def held_mask(self) -> Tensor:
        """(K,) bool on the device: the variables that stay at 0."""
        held = self.movable().held if self._held is None else self._held
        return self.analysis.on_device("held", held, self.device)

    def powers_of_two(self) -> Tensor | None:
        """(K,) bool on the device: variables that move by powers of two only; None: none."""
        mask = self._powers_of_two()
        return None if mask is None else self.analysis.on_device("powers of two", mask, self.device)

    def _powers_of_two(self) -> Mask | None:
        """`powers_of_two`, on the host."""
        choice = self.analysis.options.scales
        if choice == "exact" or (choice == "auto" and not self._half):
            return None
        if choice == "auto":
            return self.analysis.group_mask(sorted(self._half))
        return np.ones(self.analysis.symmetry.num_scales, dtype=bool)

    def _keeps(self) -> dict[str, Keep]:
        """By name of a tensor of the model, what is not to be lost of it."""
        buffers, mask = self.analysis.symmetry.buffers, self._powers_of_two()
        found = {}
        for name, tensor in self.tensors.items():
            if name in buffers or (tensor.dtype in _HALF and name in self._mastered):
                found[name] = Keep.ENTRIES
            elif mask is not None and mask[self.analysis.variables_of[name]].any():
                found[name] = Keep.DIGITS
            else:
                found[name] = Keep.LARGEST
        return found

    def targets(
        self,
        optimizers: Sequence[Optimizer] = (),
        *,
        frozen: bool = True,
        grads: bool = False,
        state: StateChoice = "reexpress",
    ) -> list[ScaleTarget]:
        """Everything that a rescaling multiplies: parameters, moved buffers, tracked copies, optimizer state, gradients.

        Args:
            optimizers: whose state follows.
            frozen: whether frozen parameters are among them (`step` and `balance` leave those alone).
            grads: whether gradients are.
            state: what becomes of optimizer state.

        Raises:
            OptimizerError: no rule, foreign parameters, or state of another shape.
            RescaleError: a tensor cannot be multiplied in place, or two share memory in part.
        """
        left_out = frozenset() if frozen else self.frozen
        moved = {name: tensor for name, tensor in self.tensors.items() if name not in left_out}
        copied = [{name: tensor for name, tensor in one.items() if name not in left_out} for one in self._copies]
        known = {id(tensor) for one in self._copies for tensor in one.values()} | set(map(id, self._model.parameters()))
        if optimizers and not owned_by(optimizers) & known:
            names = " and ".join(type(optimizer).__name__ for optimizer in optimizers)
            raise OptimizerError(f"{names} holds none of the model's parameters: pass the optimizer that trains this model")
        parameters = {name: tensor for name, tensor in moved.items() if name not in self.analysis.symmetry.buffers}
        same = [twin for twin in self._twins if twin.keys() <= parameters.keys()]
        terms, offsets = self.analysis.terms, self.analysis.symmetry.offsets
        self._followers = find_followers(terms, optimizers, parameters, copied, same, offsets=offsets, state=state, grads=grads)
        keeps = self._keeps()
        own = [
            ScaleTarget(name, tensor, terms(name, tensor.device), offset=offsets.get(name, 0.0), keep=keeps[name])
            for name, tensor in moved.items()
        ]
        targets = own + self._followers.targets
        refuse_unwritable(targets)
        self._followers.factors = distinct_pairs(self._followers.factors)
        return distinct_targets(targets)

    def apply(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """Multiplies what `targets` returned, and does what else has to follow: all of it, or none."""
        after = self._followers.after()
        self.journal.carry_out([*self.backend.writes(targets, log_scales), *after])

    def apply_told(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """`apply`; other processes are told where this one meets an error."""
        self.apply(targets, log_scales)

    @property
    def repeatable(self) -> bool:
        """Whether `targets` says all, so that the same call may use them again while nothing is replaced."""
        return self._followers.repeatable

    def moved_ids(self) -> set[int]:
        """ids of the parameters that `step` moves, and of their tracked copies."""
        left_out = self.frozen | self.analysis.symmetry.buffers
        copies = (self.tensors, *self._twins, *self._copies)
        return {id(tensor) for tensors in copies for name, tensor in tensors.items() if name not in left_out}

    def a_gradient(self) -> Tensor | None:
        """The gradient of the first parameter that has one."""
        owners = (tensor for name, tensor in self.tensors.items() if name not in self.analysis.symmetry.buffers)
        return next((tensor.grad for tensor in owners if tensor.grad is not None), None)

    def unowned(self, optimizers: Sequence[Optimizer]) -> list[str]:
        """Moved parameters that none of the optimizers holds, neither themselves nor as a tracked copy."""
        owned = owned_by(optimizers)
        skipped = self.frozen | self.analysis.symmetry.buffers
        held_by = (self.tensors, *self._twins, *self._copies)
        held = {name for one in held_by for name, tensor in one.items() if id(tensor) in owned}
        return [name for name in self.tensors if name not in skipped and name not in held]

    def copied_tensors(self) -> list[Tensor]:
        """All tensors of tracked copies."""
        return [tensor for one in self._copies for tensor in one.values()]

    def read_tensors(self) -> list[Tensor]:
        """All tensors of the model that are read or written."""
        return list(self._read.values())

    def said_of_flags(self) -> tuple[str, ...]:
        """Which of the parameters are frozen, in words that processes compare."""
        buffers = self.analysis.symmetry.buffers
        named = [item for tensors in (self._read, *self._twins) for item in tensors.items()]
        frozen = sorted({name for name, tensor in named if name not in buffers and not tensor.requires_grad})
        trains = any(parameter.requires_grad for parameter in self._model.parameters())
        return (*(f"{name} is frozen" for name in frozen), *(() if trains else ("nothing is trained",)))

    def said_of_types(self) -> tuple[str, ...]:
        """The tensors' types and strides, in words that processes compare: sums in another order differ in their last digits."""
        return tuple(f"{name} is {tensor.dtype} with strides {tensor.stride()}" for name, tensor in self._read.items())

    def said_of_copies(self) -> tuple[str, ...]:
        """The tracked copies, in words that processes compare."""
        found = []
        for given in self._given:
            digest = hashlib.sha256(repr([(name, tensor.dtype) for name, tensor in given.items()]).encode())
            found.append(f"a copy of {len(given)} tensors ({digest.hexdigest()[:8]})")
        return (*found, *(f"{name} is rewritten from a copy" for name in sorted(self._mastered)))

    def agreed_scales(self, solve: Callable[[], Solved[T]]) -> Solved[T]:
        """What was solved for, with the same log-scales on every process; errors of one are raised on all."""
        return solve()

    def sums(self) -> ChannelSums:
        """N and P of the weights as they are."""
        return self.backend.reduce(self.program, *self.gather())

    def gather(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The counted tensors and the factors by which they are multiplied before their norm is taken."""
        return self.analysis.objective.gather(self._read)

    def within_now(self) -> tuple[Snapshot, Problem, Movable]:
        """The same tensors as `balance` sees them: as `within`, but by the current weights; waits for the device."""
        unfrozen = free(self.analysis, self.frozen, self._rounded())
        first = self.within(unfrozen)
        problem = first.problem()
        rows = first.exponent_rows(problem)
        negative, positive = (logs.cpu().numpy() for logs in problem.log_sums())
        if not rows.lacking and (negative < np.inf).all() and (positive < np.inf).all():
            left = self.movable()
        else:
            left = with_minimum(self.analysis, unfrozen, rows, (negative, positive))
        found = first if left.analysis is first.analysis else self.within(left)
        found._held = left.held
        problem = problem if found is first else found.problem()
        return found, replace(problem, held=torch.from_numpy(left.held).to(self.device)), left

    def exponent_rows(self, problem: Problem) -> ExponentRows:
        """The exponents of the counted entries that are not zero."""
        return exponent_rows(problem.program.to(torch.device("cpu")), problem.matrices)

    def problem(self, held: Tensor | None = None) -> Problem:
        """The objective, with its matrices read."""
        program = self.program
        matrices = self.backend.matrices(program, *self.gather())
        limit = torch.full_like(program.degree, self.analysis.most_log_scale or math.inf)
        held = torch.zeros_like(program.counted_negative) if held is None else held
        groups = self.analysis.on_device("solver groups", self.analysis.solver_groups, self.device)
        return Problem(self.backend, program, matrices, held, limit, groups.to(torch.int64), self.analysis.group_order)

    def layer_norms(self, problem: Problem, log_scales: Tensor | None = None) -> dict[str, Tensor]:
        """By layer, the p-norm of its counted tensors, without layer weights."""
        members: dict[str, list[Tensor]] = {}
        (energies,) = problem.energies([log_scales])
        for item, energy in zip(self.analysis.objective.counted, energies.unbind(), strict=True):
            members.setdefault(item.layer, []).append(energy)
        p = self.analysis.options.p
        if math.isinf(p):
            return {layer: torch.stack(logs).amax(0).exp() for layer, logs in members.items()}
        return {layer: (torch.stack(logs).logsumexp(0) / p).exp() for layer, logs in members.items()}

    def cycles(self, targets: Sequence[ScaleTarget], count: int) -> Tensor:
        """(K,) log-scales of `count` cycles, small enough that no entry of a target leaves its room; waits for nothing."""
        if self._looks_first(targets):
            # On a CPU a look at the weights costs less than all rooms, which hardly any step needs.
            found = self._cycles(torch.full((2, self.program.num_scales), MOST_GROWTH, dtype=torch.float64, device="cpu"), count)
            if are_far_from_ends(targets, found):
                return found
        return self._cycles(self.rooms(targets), count)

    def _looks_first(self, targets: Sequence[ScaleTarget]) -> bool:
        """Whether all numbers lie where an answer can be waited for."""
        return self.device.type == "cpu" and all(target.tensor.device.type == "cpu" for target in targets)

    def _cycles(self, limit: Tensor, count: int) -> Tensor:
        """`cycles` within a limit: (2, K) how far each variable can go up and down."""
        program, held, powers_of_two = self.program, self.held_mask(), self.powers_of_two()
        if self.analysis.most_log_scale is not None:
            limit = limit.clamp(max=self.analysis.most_log_scale)
        if powers_of_two is not None:
            limit = round_limit(limit, powers_of_two)
        total = torch.zeros_like(program.degree)
        # Powers of two need the bound that only a Jacobi cycle gives.
        gauss_seidel = self.analysis.options.solver.endswith("gauss-seidel") and powers_of_two is None
        if count == 1 and powers_of_two is None and not gauss_seidel:
            sums = self.sums()
            return jacobi_step(sums.log_negative, sums.log_positive, program.degree, self.analysis.options.p, held, limit)
        problem = replace(self.problem(held), limit=limit)
        for _ in range(count):
            if gauss_seidel:
                total = gauss_seidel_sweep(problem, total)
                continue
            cycle = jacobi_step(*problem.log_sums(total), program.degree, self.analysis.options.p, held)
            total = move(problem, total, cycle, powers_of_two)
        return total

    def rooms(self, targets: Sequence[ScaleTarget]) -> Tensor:
        """(2, K) how far each variable can go up and down before an entry of a target leaves its room."""
        return self.backend.rooms(targets, self.program.num_scales, self.device)

    def leaving(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """(K,) bool: variables that move an entry of a target out of its room."""
        return self.backend.leaving(targets, log_scales)

    def rounded(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> int:
        """How many entries lose digits that powers of two should leave."""
        return self.backend.rounded(targets, log_scales)

    def refuse_overflow(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """Raises a RescaleError where a target would overflow."""
        refuse_overflow(self.backend, targets, log_scales)

    def checked_scales(self, log_scales: Tensor) -> Tensor:
        """Log-scales on the device, in its float type."""
        return log_scales.detach().to(device=self.device, dtype=float_dtype(self.device))

"""`Weights`: the model's tensors at one call, checked, with all that the executors need of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..analysis.analysis import Analysis
from ..analysis.attained.exponent_rows import ExponentRows, any_lacking, exponent_rows
from ..analysis.attained.movable import Movable, free, movable, with_minimum
from ..analysis.counted import CountedTensors
from ..analysis.held import FrozenChoice, Mask
from ..distributed.processes import OneProcess, Processes
from ..distributed.ranks import Ranks
from ..distributed.replicas import agreed_values
from ..errors import OptimizerError
from ..kernels.backend import Backend, reference_backend
from ..kernels.program import Keep, ReduceProgram, ScaleTarget, float_dtype
from ..optim.joint_state import refuse_joint_state
from ..optim.state import StateChoice, owned_by
from .followers import Followers, find_followers
from .journal import Journal
from .objective import CurrentObjective
from .shared.replicas import Replicas
from .shared.shards import local_target
from .shared.spread import Spread
from .shared.sums import OwnSums, Sums
from .targets import Targets
from .tensors import model_tensors, twins
from .tracked import Tracked, distinct
from .writable import refuse_unwritable
from .write_once import distinct_pairs, distinct_targets

__all__ = ["Weights"]

_HALF = (torch.float16, torch.bfloat16)


class Weights:
    """One call's view of the model. Making it reads names, shapes and flags only, and raises before anything is written.

    Each process of a model that is spread over several reads and multiplies its part. Each of those that have a copy each has
    seen other batches and has running statistics of its own, so where the objective reads those of BatchNorms, the first
    process's are used by all.

    Args:
        analysis: the plan without its module.
        model: the module, without wrappers.
        tracked: copies that follow.
        journal: carries out the writes.
        ranks: the processes over which the model is spread; None: this one has all of it.
        replicas: the processes that have a copy each; None: there are no others.
        flags: how parameters with requires_grad=False are treated.

    Raises:
        BindError, RescaleError: see `model_tensors` and `Spread`.
    """

    def __init__(
        self,
        analysis: Analysis,
        model: nn.Module,
        tracked: Sequence[Tracked] = (),
        journal: Journal | None = None,
        *,
        ranks: Ranks | None = None,
        replicas: Replicas | None = None,
        flags: FrozenChoice = "auto",
    ) -> None:
        self.analysis, self.model, self.ranks, self.replicas, self.flags = analysis, model, ranks, replicas, flags
        self.read = model_tensors(model, analysis.symmetry, analysis.counted.folded_names)
        self.tensors = {name: tensor for name, tensor in self.read.items() if name in analysis.symmetry.exponents}
        self.twins = twins(model, analysis.symmetry)
        self.given = [one.tensors(model) for one in tracked]
        self.copies = distinct(self.given)
        self.mastered = {name for one in tracked for name in one.masters(model)}
        self.journal = Journal() if journal is None else journal
        self._statistics: dict[str, Tensor] | None = None
        self.failures: list[BaseException] = []
        self._held: Mask | None = None
        first = analysis.counted.tensors[0].parameter if analysis.counted.tensors else next(iter(self.tensors), None)
        self.device = self.read[first].device if first is not None else torch.device("cpu")
        self.spread = self._spread()

    def _spread(self) -> Spread | None:
        """Works out which part of the model this process holds, in the basis of `analysis`; None: all of it."""
        if self.ranks is None:
            return None
        return Spread(self.analysis, self.read, self.ranks, self.failures, self.device)

    @property
    def others(self) -> Processes:
        """The processes that have to be told when this one meets an error."""
        if self.ranks is not None:
            return self.ranks
        return OneProcess() if self.replicas is None else self.replicas.ranks(self.device)

    @property
    def backend(self) -> Backend:
        """The executor to use now: of a model that is spread the eager one, for a part is a view with gaps of its own."""
        if self.ranks is not None:
            return reference_backend()
        return self.analysis.backend if self.replicas is None else self.replicas.backend

    @property
    def sums(self) -> Sums:
        """Makes sums of all processes from those of this one."""
        return OwnSums() if self.spread is None else self.spread.sums

    @property
    def program(self) -> ReduceProgram:
        """The program of this process's part of the objective, on the device where sums and log-scales live."""
        whole = self.analysis.counted.program
        return (whole if self.spread is None else self.spread.local.program).to(self.device)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Names of tensors that carry variables and are frozen; with "auto" none where the model trains nothing (inference)."""
        trains = self.flags == "hold" or any(parameter.requires_grad for parameter in self.model.parameters())
        if self.flags == "move" or not trains:
            return frozenset()
        buffers = self.analysis.symmetry.buffers
        named = [item for tensors in (self.tensors, *self.twins) for item in tensors.items()]
        return frozenset(name for name, tensor in named if name not in buffers and not tensor.requires_grad)

    def _rounded(self) -> frozenset[str]:
        """Returns the names of tensors with an offset o that would have to stay bit-identical, which o + w does not."""
        choice, offsets = self.analysis.options.scales, self.analysis.symmetry.offsets
        if choice == "exact":
            return frozenset()
        return frozenset(name for name in offsets if choice == "pow2" or name in self._half)

    @cached_property
    def _half(self) -> frozenset[str]:
        """Names of the 16-bit tensors that are not rewritten from a wider copy."""
        return frozenset(name for name, tensor in self.tensors.items() if tensor.dtype in _HALF and name not in self.mastered)

    def movable(self) -> Movable:
        """Returns the variables that `step` may move, by the graph and the flags."""
        return movable(self.analysis, self.frozen, self._rounded())

    def unfrozen(self) -> Movable:
        """Returns the variables that flags and options leave free, whatever the objective is."""
        return free(self.analysis, self.frozen, self._rounded())

    def within(self, left: Movable | None = None) -> Weights:
        """Returns the same tensors as `step` sees them: in a basis of the variables that may move, by graph and flags.

        Args:
            left: the variables that may move, where these are known otherwise.
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
            found.copies, found.twins = (
                [{name: tensor for name, tensor in one.items() if name in moved} for one in others]
                for others in (self.copies, self.twins)
            )
            found.spread = found._spread()
        return found

    def held_mask(self) -> Tensor:
        """Returns (K,) bool on the device: the variables that stay at 0."""
        held = self.movable().held if self._held is None else self._held
        return self.analysis.on_device("held", held, self.device)

    def powers_of_two(self) -> Tensor | None:
        """Returns (K,) bool on the device: variables that move by powers of two only; None: none."""
        mask = self._powers_of_two()
        if mask is not None and mask.any():
            self.analysis.options.refuse_less_than_an_octave()
        return None if mask is None else self.analysis.on_device("powers of two", mask, self.device)

    def _powers_of_two(self) -> Mask | None:
        """Returns `powers_of_two` as a mask on the host."""
        choice = self.analysis.options.scales
        if choice == "exact" or (choice == "auto" and not self._half):
            return None
        every = np.ones(self.analysis.symmetry.num_scales, dtype=bool)
        return self.analysis.group_mask(sorted(self._half)) if choice == "auto" else every

    def _keeps(self) -> dict[str, Keep]:
        """Returns, by name of a tensor of the model, how much of it a rescaling has to keep."""
        buffers, mask = self.analysis.symmetry.buffers, self._powers_of_two()
        found = {}
        for name, tensor in self.tensors.items():
            if name in buffers or (tensor.dtype in _HALF and name in self.mastered):
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
    ) -> Targets:
        """Finds everything that a rescaling multiplies: parameters, moved buffers, tracked copies, optimizer state, gradients.

        Args:
            optimizers: whose state follows.
            frozen: whether frozen parameters are among them (`step` and `balance` leave those alone).
            grads: whether gradients are.
            state: whether optimizer state is re-expressed, dropped or kept.

        Raises:
            OptimizerError: no rule, foreign parameters, or state of another shape.
            RescaleError: a tensor cannot be multiplied in place, or two share memory in part.
        """
        if self.ranks is not None and state == "reexpress":
            refuse_joint_state(optimizers)
        left_out = frozenset() if frozen else self.frozen
        moved = {name: tensor for name, tensor in self.tensors.items() if name not in left_out}
        copied = [{name: tensor for name, tensor in one.items() if name not in left_out} for one in self.copies]
        known = {id(tensor) for one in self.copies for tensor in one.values()} | set(map(id, self.model.parameters()))
        if optimizers and not owned_by(optimizers) & known:
            names = " and ".join(type(optimizer).__name__ for optimizer in optimizers)
            raise OptimizerError(f"{names} holds none of the model's parameters: pass the optimizer that trains this model")
        parameters = {name: tensor for name, tensor in moved.items() if name not in self.analysis.symmetry.buffers}
        same = [twin for twin in self.twins if twin.keys() <= parameters.keys()]
        terms, offsets = self.analysis.terms, self.analysis.symmetry.offsets
        followers = find_followers(terms, optimizers, parameters, copied, same, offsets=offsets, state=state, grads=grads)
        keeps = self._keeps()
        own = [
            ScaleTarget(name, tensor, terms(name, tensor.device), offset=offsets.get(name, 0.0), keep=keeps[name])
            for name, tensor in moved.items()
        ]
        targets = own + followers.targets
        refuse_unwritable(targets)
        followers.factors = distinct_pairs(followers.factors)
        targets = distinct_targets(targets)
        if self.ranks is not None:
            targets = [local_target(self.analysis, target, self.ranks) for target in targets]
        return self._to_multiply(targets, followers)

    def no_targets(self) -> Targets:
        """Returns the targets of a rescaling that moves nothing."""
        return self._to_multiply([], Followers())

    def _to_multiply(self, tensors: list[ScaleTarget], followers: Followers) -> Targets:
        """Puts together the tensors to multiply and the parts that carry this out."""
        count = self.analysis.symmetry.num_scales
        return Targets(tensors, followers, lambda: self.backend, self.journal, self.sums, self.others, count, self.device)

    @property
    def repeatable(self) -> bool:
        """Whether the next call may use the same view: a process's part is looked up anew, and statistics change."""
        return self.ranks is None and (self.replicas is None or not self.analysis.counted.statistics)

    def moved_ids(self) -> set[int]:
        """Returns the ids of the parameters that `step` moves, and of their tracked copies."""
        left_out = self.frozen | self.analysis.symmetry.buffers
        copies = (self.tensors, *self.twins, *self.copies)
        return {id(tensor) for tensors in copies for name, tensor in tensors.items() if name not in left_out}

    def copied_tensors(self) -> list[Tensor]:
        """Returns all tensors of all tracked copies."""
        return [tensor for one in self.copies for tensor in one.values()]

    def read_tensors(self) -> list[Tensor]:
        """Returns all tensors of the model that are read or written."""
        return list(self.read.values())

    def log_sums(self) -> tuple[Tensor, Tensor]:
        """Returns (K,) log N and log P of the weights as they are."""
        return self.sums.pair("sums", self.own_log_sums, self.program.num_scales)

    def own_log_sums(self) -> tuple[Tensor, Tensor]:
        """Returns (K,) log N and log P of this process's part, read once and not kept."""
        sums = self.backend.reduce(self.program, *self.gather())
        return sums.log_negative, sums.log_positive

    def gather(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Returns this process's parts of the counted tensors, and the factors that multiply them before their norm.

        Replicas take the statistics of the first of them, by one broadcast.
        """
        counted = self.analysis.counted
        return self.spread.gather() if self.spread is not None else counted.gather(self.tensors_for(counted))

    def tensors_for(self, counted: CountedTensors) -> Mapping[str, Tensor]:
        """Returns the tensors that some counted ones are read from."""
        if self.replicas is None or not counted.statistics:
            return self.read
        if self._statistics is None:
            own = {name: self.read[name] for name in counted.statistics}
            self._statistics = agreed_values(self.replicas.group, own)
        return {**self.read, **self._statistics}

    def within_now(self) -> tuple[Weights, CurrentObjective, Movable]:
        """Returns the same tensors as `balance` sees them: as `within`, but by the current weights; waits for the device."""
        unfrozen = self.unfrozen()
        first = self.within(unfrozen)
        objective = first.objective()
        negative, positive = (logs.cpu().numpy() for logs in objective.log_sums())
        rows = first.exponent_rows(objective, bool((negative < np.inf).all() and (positive < np.inf).all()))
        left = self.movable() if rows is None else with_minimum(self.analysis, unfrozen, rows, (negative, positive))
        found = first if left.analysis is first.analysis else self.within(left)
        found._held = left.held
        objective = objective if found is first else found.objective()
        return found, replace(objective, held=torch.from_numpy(left.held).to(self.device)), left

    def exponent_rows(self, objective: CurrentObjective, finite: bool) -> ExponentRows | None:
        """Returns the exponents of all counted entries that are not zero; None where all are not, and all sums are finite."""
        program = objective.program.to(torch.device("cpu"))
        if self.ranks is None:
            if finite and not any_lacking(program, objective.matrices, objective.backend.has_zeros):
                return None
            return exponent_rows(program, objective.matrices, objective.backend.has_zeros)
        parts = self.ranks.gather_made(lambda: exponent_rows(program, objective.matrices))
        rows = parts[0].extended(parts[1:])
        return rows if rows.lacking or not finite else None

    def objective(self, held: Tensor | None = None) -> CurrentObjective:
        """Reads this process's matrices once; returns the objective."""
        program, spread, analysis = self.program, self.spread, self.analysis
        matrices = self.backend.matrices(program, *self.gather())
        limit = torch.full_like(program.degree, analysis.most_log_scale or math.inf)
        held = torch.zeros_like(program.counted_negative) if held is None else held
        groups = analysis.on_device("solver groups", analysis.solver_groups, self.device).to(torch.int64)
        order, whole, positions = analysis.group_order, None, None
        if spread is not None:
            order, whole, positions = spread.order, analysis.counted.program.to(self.device), spread.local.positions
        return CurrentObjective(
            self.backend, program, matrices, held, limit, groups, order, whole=whole, positions=positions, sums=self.sums
        )

    def layer_norms(self, objective: CurrentObjective, log_scales: Tensor | None = None) -> dict[str, Tensor]:
        """Returns, by layer, the 0-d p-norm of its counted tensors, without layer weights."""
        members: dict[str, list[Tensor]] = {}
        (energies,) = objective.energies([log_scales])
        for item, energy in zip(self.analysis.counted.tensors, energies.unbind(), strict=True):
            members.setdefault(item.layer, []).append(energy)
        p = self.analysis.options.p
        if math.isinf(p):
            return {layer: torch.stack(logs).amax(0).exp() for layer, logs in members.items()}
        return {layer: (torch.stack(logs).logsumexp(0) / p).exp() for layer, logs in members.items()}

    def checked_scales(self, log_scales: Tensor) -> Tensor:
        """Returns log-scales on the device, in its float type."""
        return log_scales.detach().to(device=self.device, dtype=float_dtype(self.device))

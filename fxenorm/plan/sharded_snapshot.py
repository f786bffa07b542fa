"""The tensors of a model that is spread over processes (fully_shard, tensor parallel), at one call.

Each process reads and multiplies what it holds; sums by channel are what the processes tell one another. Nobody ever holds
the whole of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.dtensors import is_distributed, local_part
from ..distributed.ranks import Ranks
from ..errors import OptimizerError, RescaleError
from ..kernels.backend import Backend, get_backend
from ..kernels.program import ChannelSums, ReduceProgram, ScaleTarget
from ..optim.state import StateChoice
from ..optim.wrappers import own_state, rules_for
from .core import Core
from .exponent_rows import ExponentRows, exponent_rows
from .problem import Problem
from .sharded_problem import Reducer, ShardedProblem
from .shards import local_objective, local_target, put_together
from .snapshot import Snapshot
from .stages import group_order
from .track import Tracked

__all__ = ["ShardedSnapshot"]


class ShardedSnapshot(Snapshot):
    """See `Snapshot`. Making one tells the other processes nothing.

    Args:
        core, model, tracked: see `Snapshot`.
        ranks: the processes.

    Raises:
        RescaleError: a tensor is placed in a way that does not say which entries a process holds.
    """

    def __init__(self, core: Core, model: nn.Module, tracked: Sequence[Tracked], ranks: Ranks) -> None:
        super().__init__(core, model, tracked)
        self.ranks = ranks
        self._eager = get_backend("eager")
        self._entered()

    def _entered(self) -> None:
        """Works out this process's part of the objective."""
        self._local = local_objective(self.core, self._read, self.ranks)
        self.reducer = Reducer(self.ranks, self.core.options.p, self._local.reference.to(self.device))

    @property
    def backend(self) -> Backend:
        """The eager executor: a process's part is a view with gaps of its own."""
        return self._eager

    @property
    def program(self) -> ReduceProgram:
        """The program of this process's part of the objective."""
        return self._local.program.to(self.device)

    def targets(
        self,
        optimizers: Sequence[Optimizer] = (),
        *,
        frozen: bool = True,
        grads: bool = False,
        state: StateChoice = "reexpress",
    ) -> list[ScaleTarget]:
        """As `Snapshot.targets`: this process's part of each."""
        if state == "reexpress":
            _refuse_joint_state(optimizers)
        found = super().targets(optimizers, frozen=frozen, grads=grads, state=state)
        return [local_target(self.core, target, self.ranks) for target in found]

    @property
    def repeatable(self) -> bool:
        """False: what the next call needs is looked up anew."""
        return False

    def gather(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """This process's parts of the counted tensors, and their factors."""
        local, objective = self._local, self.core.objective
        positions = local.positions.tolist()
        if not objective.folded_names:
            return [local_part(self._read[objective.counted[position].parameter]) for position in positions], [None] * len(
                positions
            )
        vectors = put_together(self.core, self._read, local, self.ranks)
        tensors, factors = objective.gather_whole({**self._read, **vectors})
        found: list[Tensor] = []
        found_factors: list[Tensor | None] = []
        for position, layout in zip(positions, local.layouts, strict=True):
            tensor, factor = tensors[position], factors[position]
            found.append(local_part(tensor) if is_distributed(tensor) else layout.cut_tensor(tensor))
            found_factors.append(None if factor is None else layout.cut_tensor(factor))
        return found, found_factors

    def apply_told(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """`apply`, and one collective in which an error in the writes of any process is raised on all."""
        error: BaseException | None = None
        try:
            self.apply(targets, log_scales)
        except BaseException as found:
            error = found
        failed = torch.tensor([float(error is not None)], dtype=torch.float32, device="cpu")
        raised = bool(self.ranks.largest(failed))
        if error is not None:
            raise error
        if raised:
            raise RescaleError(
                "another process met an error while it rescaled its part of the model, and its own message says which: this part "
                "is rescaled, and that one too, or at the next call"
            )

    def local_logs(self) -> Tensor:
        """(2 K,) log N and log P of this process's part, read once and not kept."""
        sums = super().sums()
        return torch.cat([sums.log_negative, sums.log_positive])

    def sums(self) -> ChannelSums:
        """N and P of the weights as they are."""
        found, _ = self.reducer("sums", self.local_logs())
        return ChannelSums(*found.chunk(2))

    def problem(self, held: Tensor | None = None) -> ShardedProblem:
        """The objective, with this process's matrices read."""
        own = super().problem(held)
        whole = self.core.objective.program.to(self.device)
        return ShardedProblem(
            own.backend,
            own.program,
            own.matrices,
            own.held,
            own.limit,
            own.groups,
            lambda program: group_order(self._local.program, self.core.solver_groups).to(program),
            whole=whole,
            positions=self._local.positions,
            reducer=self.reducer,
        )

    def exponent_rows(self, problem: Problem) -> ExponentRows:
        """The exponents of the counted entries that are not zero, of all processes."""
        own = exponent_rows(self._local.program, problem.matrices)
        parts: list[ExponentRows] = self.ranks.gather(own)
        return parts[0].extended(parts[1:])

    def overflowing(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """(K,) bool: variables to set to 0 so that no target overflows on any process."""
        return self.ranks.largest(super().overflowing(targets, log_scales).float()) > 0

    def refuse_overflow(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """Raises on every process where a target would overflow on any."""
        error = None
        try:
            super().refuse_overflow(targets, log_scales)
        except RescaleError as found:
            error = found
        self.ranks.agree(error)

    def checked_scales(self, log_scales: Tensor) -> Tensor:
        """Log-scales on the device, the same on every process."""
        scales = super().checked_scales(log_scales)
        bounds = self.ranks.largest(torch.cat([scales, -scales]))
        if not torch.equal(bounds[: scales.numel()], -bounds[scales.numel() :]):
            raise RescaleError(
                "log_scales differ from process to process, which would tear the model apart: nothing was rescaled. Give every "
                "process the same, for example drawn from generators with one seed"
            )
        return scales


def _refuse_joint_state(optimizers: Sequence[Optimizer]) -> None:
    """Raises where an optimizer keeps state that belongs to several entries at once: its parts do not follow their own."""
    for optimizer in optimizers:
        rules = rules_for(optimizer, optimizers)
        members = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
        for parameter, group in members:
            state = own_state(optimizer).get(parameter)
            found = [item for rule in rules for item in rule.follows(state, group).items()] if state else []
            joint = [key for key, follows in found if not isinstance(follows, int)]
            if joint:
                raise OptimizerError(
                    f"{type(optimizer).__name__} keeps {joint[0]!r}, which sums up many entries, and the model is spread over "
                    "processes: nothing was rescaled. Pass state='reset' to drop that state, state='keep' to leave it, or use "
                    "an optimizer whose state has the parameters' shape"
                )

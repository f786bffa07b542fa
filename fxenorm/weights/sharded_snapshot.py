"""The tensors of a model that is spread over processes (fully_shard, tensor parallel), at one call.

Each process reads and multiplies what it holds; sums by channel are what the processes tell one another. Nobody ever holds
the whole of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..analysis.analysis import Analysis
from ..analysis.attained.exponent_rows import ExponentRows, exponent_rows
from ..analysis.group_order import group_order
from ..distributed.agreement import ELSEWHERE, Answer
from ..distributed.dtensors import is_distributed, local_part
from ..distributed.ranks import Ranks
from ..errors import OptimizerError
from ..kernels.backend import Backend, get_backend
from ..kernels.program import ChannelSums, ReduceProgram, ScaleTarget
from ..optim.state import StateChoice
from ..optim.wrappers import own_state, rules_for
from .objective import Problem
from .sharded_problem import Reducer, ShardedProblem
from .shards import local_objective, local_target, put_together
from .told import apply_and_tell
from .tracked import Tracked
from .weights import Snapshot, Solved

__all__ = ["ShardedSnapshot"]

T = TypeVar("T")


class ShardedSnapshot(Snapshot):
    """See `Snapshot`. Making one tells the other processes nothing.

    Args:
        analysis, model, tracked: see `Snapshot`.
        ranks: the processes.

    Raises:
        RescaleError: a tensor is placed in a way that does not say which entries a process holds.
    """

    def __init__(self, analysis: Analysis, model: nn.Module, tracked: Sequence[Tracked], ranks: Ranks) -> None:
        super().__init__(analysis, model, tracked)
        self.ranks = ranks
        self._eager = get_backend("eager")
        self.failures: list[BaseException] = []
        self._entered()

    def _entered(self) -> None:
        """Works out this process's part of the objective."""
        self._local = local_objective(self.analysis, self._read, self.ranks)
        self._vectors: dict[str, Tensor] | None = None
        reference = self._local.reference.to(self.device)
        self.reducer = Reducer(self.ranks, self.analysis.options.p, reference, self.failures)

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
        return [local_target(self.analysis, target, self.ranks) for target in found]

    @property
    def repeatable(self) -> bool:
        """False: what the next call needs is looked up anew."""
        return False

    def gather(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """This process's parts of the counted tensors, and their factors."""
        local, objective = self._local, self.analysis.objective
        positions = local.positions.tolist()
        if not objective.folded_names:
            return [local_part(self._read[objective.counted[position].parameter]) for position in positions], [None] * len(
                positions
            )
        tensors, factors = objective.gather_whole({**self._read, **self._put_together(self.ranks.total)})
        found: list[Tensor] = []
        found_factors: list[Tensor | None] = []
        for position, layout in zip(positions, local.layouts, strict=True):
            tensor, factor = tensors[position], factors[position]
            found.append(local_part(tensor) if is_distributed(tensor) else layout.cut_tensor(tensor))
            found_factors.append(None if factor is None else layout.cut_tensor(factor))
        return found, found_factors

    def _put_together(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The vectors of folded BatchNorms, put together once."""
        if self._vectors is None:
            self._vectors = put_together(self.analysis, self._read, self._local, self.ranks, total)
        return self._vectors

    @property
    def joins(self) -> bool:
        """Whether folded BatchNorms have to be put together by a collective, before sums can be formed."""
        return bool(self._local.joined) and any(is_distributed(self._read[name]) for name in self._local.joined)

    def exchange(self, notes: Tensor, logs: Tensor | None, rooms: Tensor) -> tuple[Answer, tuple[Tensor, Tensor] | None]:
        """The first collective of a step: that of the sums, or that of what folded BatchNorms are put together from.

        Args:
            notes: what this process has to say.
            logs: (2 K,) log N and log P of its part; None: they come later.
            rooms: (2, K) how far its tensors let each variable go.

        Returns:
            What all say, and log N and log P of all with the rooms that all have, or None for these.
        """
        least = self.analysis.least_message
        if logs is not None:
            found, common, board = self.reducer.with_rooms(logs, rooms, notes, least)
            return Answer(board), (found, common)
        boards: list[Tensor] = []

        def total(values: Tensor) -> Tensor:
            """Adds up over processes, and takes the notes along."""
            sums, board = self.ranks.total_with(values, notes, least)
            boards.append(board)
            return sums

        self._put_together(total)
        return Answer(boards[0]), None

    def agreed_scales(self, solve: Callable[[], Solved[T]]) -> Solved[T]:
        """What was solved for, together; errors of one process are raised on all, by one small collective."""
        error: BaseException | None = None
        try:
            found = solve()
        except BaseException as raised:  # whatever it is, the others wait
            error = raised
        self.ranks.tell(next(iter(self.failures), error), f"{ELSEWHERE}; its own message says why (rank {{}})")
        return found

    def apply_told(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """`apply`, and one collective in which an error in the writes of any process is raised on all."""
        apply_and_tell(self, self.ranks, targets, log_scales)

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
        whole = self.analysis.objective.program.to(self.device)
        return ShardedProblem(
            own.backend,
            own.program,
            own.matrices,
            own.held,
            own.limit,
            own.groups,
            lambda program: group_order(self._local.program, self.analysis.solver_groups).to(program),
            whole=whole,
            positions=self._local.positions,
            reducer=self.reducer,
        )

    def exponent_rows(self, problem: Problem) -> ExponentRows:
        """The exponents of the counted entries that are not zero, of all processes."""
        parts = self.ranks.gather_made(lambda: exponent_rows(self._local.program, problem.matrices))
        return parts[0].extended(parts[1:])

    def rooms(self, targets: Sequence[ScaleTarget]) -> Tensor:
        """(2, K) how far each variable can go up and down before an entry leaves its room on any process."""
        count = 2 * self.analysis.symmetry.num_scales
        own = self.reducer.own(lambda: self.local_rooms(targets).reshape(-1), count).nan_to_num(nan=0.0)
        return -self.ranks.largest(-own).reshape(2, -1)

    def local_rooms(self, targets: Sequence[ScaleTarget]) -> Tensor:
        """`rooms`, of what this process holds."""
        return super().rooms(targets)

    def leaving(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """(K,) bool: variables that move an entry of a target out of its room on any process."""
        own = self.reducer.own(lambda: super(ShardedSnapshot, self).leaving(targets, log_scales).double(), log_scales.numel())
        return self.ranks.total(own).nan_to_num() > 0

    def rounded(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> int:
        """How many entries lose digits that powers of two should leave, of all processes; copies of one count once a process."""
        own = self.reducer.own(lambda: log_scales.new_full((1,), super(ShardedSnapshot, self).rounded(targets, log_scales)), 1)
        return int(self.ranks.total(own).nan_to_num())


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

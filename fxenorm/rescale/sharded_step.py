"""`Plan.step` on a model that is spread over processes: one collective a cycle, in the first of which all agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..distributed.agreement import Answer, Statement, settle
from ..distributed.dtensors import local_part
from ..distributed.ranks import Ranks
from ..errors import RescaleError
from ..kernels.writes import signals_held_back
from ..solve.iterate import move, round_limit
from ..solve.jacobi import jacobi_step
from ..solve.sweeps import gauss_seidel_sweep
from ..weights.sharded_problem import ShardedProblem
from ..weights.sharded_snapshot import ShardedSnapshot
from .agreeing import Looked, meeting_of, statement_of
from .request import StepRequest
from .rescaler import Rescaler

__all__ = ["step_together"]


def step_together(
    rescaler: Rescaler,
    ranks: Ranks,
    request: StepRequest,
    optimizers: Sequence[Optimizer],
    gate: Tensor | None,
    error: BaseException | None,
) -> None:
    """See `fxenorm.rescale.step.step`.

    What goes wrong on one process raises there, and nothing moves on any: on a CPU the others raise in the same call, on a
    device, for which nothing waits, in a later one.

    Args:
        rescaler, request, gate: see there.
        ranks: the processes.
        optimizers: whose state follows.
        error: what is wrong with the call on this process; None: nothing so far.
    """
    with signals_held_back():
        try:
            if error is not None:
                raise error
            rescaler.late_answers.raise_known()
            step = _Step(rescaler, request, optimizers, gate)
        except BaseException as raised:  # whatever it is, the others wait
            statement = Statement(error=raised)
            answer = meeting_of(rescaler.analysis, ranks).ask(statement)
            if ranks.device.type == "cpu":
                settle(ranks, answer, statement)
            raise
        if rescaler.analysis.asks_apart:
            answer, found = meeting_of(rescaler.analysis, ranks).tell(step.notes), None
        else:
            answer, found = step.snapshot.exchange(step.notes, step.own_logs, step.own_rooms)
        if ranks.device.type == "cpu":
            settle(ranks, answer, step.statement)
            if not answer.moves:
                return
        else:
            rescaler.late_answers.note(answer, ranks)
        if request.rests or not rescaler.num_scales:
            return
        step.move(answer, found)
        rescaler.left_gradients.note()


class _Step:
    """What one step has looked up and read before the first collective.

    Args:
        rescaler, request, optimizers, gate: see `step_together`.
    """

    def __init__(self, rescaler: Rescaler, request: StepRequest, optimizers: Sequence[Optimizer], gate: Tensor | None) -> None:
        snapshot, self.targets = rescaler.targets(optimizers, grads=request.grads, state=request.state)
        if not isinstance(snapshot, ShardedSnapshot):
            raise RescaleError("the model's tensors were replaced while they were looked up")
        if not optimizers and request.state != "keep" and not request.grads:
            rescaler.warnings.unseen(snapshot.a_gradient())
        if not request.in_hook and rescaler.left_gradients.are_left(optimizers, snapshot, follow=request.grads):
            rescaler.warnings.accumulating()
        self.snapshot, self._cycles = snapshot, request.cycles
        self._powers_of_two = snapshot.powers_of_two()
        self._sweeps = rescaler.analysis.options.solver.endswith("gauss-seidel") and self._powers_of_two is None
        self._problem: ShardedProblem | None = None
        self._is_one = request.cycles == 1 and self._powers_of_two is None and not self._sweeps
        self.own_rooms = snapshot.local_rooms(self.targets)
        self.statement = statement_of(rescaler.analysis, request.words(), optimizers, Looked(snapshot, self.targets))
        self.notes = self.statement.notes(self.own_rooms, is_open=None if gate is None else local_part(gate))
        # What folded BatchNorms are put together from travels first; with it this process learns whether to go on.
        self.own_logs = None if snapshot.joins else self._read()

    def _read(self) -> Tensor:
        """(2 K,) log N and log P of this process's part."""
        if self._is_one:
            return self.snapshot.local_logs()
        self._problem = self.snapshot.problem(self.snapshot.held_mask())
        return self._problem.local_logs()

    def move(self, answer: Answer, found: tuple[Tensor, Tensor] | None) -> None:
        """Rescales; an error of this process between two collectives is raised when all of them are over.

        Args:
            answer: what all processes said.
            found: (2 K,) log N and log P of all, and (2, K) the rooms that all have; None: they are still to be told.
        """
        snapshot, targets = self.snapshot, self.targets
        if found is None:
            own = snapshot.reducer.own(self._read, 2 * snapshot.analysis.symmetry.num_scales)
            logs, rooms, _ = snapshot.reducer.with_rooms(own, self.own_rooms)
        else:
            logs, rooms = found
        limit = self._limit(rooms)
        total = None if self._is_one else self._all_cycles(answer, logs, limit)

        def rescale() -> None:
            """What every process does without another word."""
            snapshot.apply(targets, self._one_cycle(answer, logs, limit) if total is None else total)

        with snapshot.journal.promised(rescale, targets):
            rescale()
        if snapshot.failures:
            raise snapshot.failures[0]

    def _limit(self, rooms: Tensor) -> Tensor:
        """(2, K) how far a variable may go up and down."""
        most = self.snapshot.analysis.most_log_scale
        limit = rooms if most is None else rooms.clamp(max=most)
        return limit if self._powers_of_two is None else round_limit(limit, self._powers_of_two)

    def _one_cycle(self, answer: Answer, logs: Tensor, limit: Tensor) -> Tensor:
        """(K,) log-scales of one cycle, 0 where nothing is to move."""
        snapshot, (negative, positive) = self.snapshot, logs.chunk(2)
        degree, p = snapshot.program.degree, snapshot.analysis.options.p
        found = jacobi_step(negative, positive, degree, p, snapshot.held_mask(), limit)
        return torch.where(answer.goes_on, found, 0.0)

    def _all_cycles(self, answer: Answer, logs: Tensor, limit: Tensor) -> Tensor:
        """(K,) log-scales of all cycles as `Snapshot.cycles` takes them, 0 where nothing is to move; one collective a cycle."""
        snapshot, held = self.snapshot, self.snapshot.held_mask()
        degree, p = snapshot.program.degree, snapshot.analysis.options.p
        whole = snapshot.problem(held) if self._problem is None else self._problem
        problem = replace(whole, limit=limit)
        total = torch.zeros_like(degree)
        for cycle in range(self._cycles):
            if self._sweeps:
                total = gauss_seidel_sweep(problem, total)
                continue
            negative, positive = problem.log_sums(total) if cycle else logs.chunk(2)
            total = move(problem, total, jacobi_step(negative, positive, degree, p, held), self._powers_of_two)
        return torch.where(answer.goes_on, total, 0.0)

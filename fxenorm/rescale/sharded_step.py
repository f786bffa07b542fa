"""`Plan.step` on a model that is spread over processes: one collective a cycle, in the first of which all agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..distributed.agreement import Answer, Statement, settle
from ..distributed.dtensors import local_part
from ..distributed.ranks import Ranks
from ..errors import RescaleError
from ..kernels.writes import signals_held_back
from ..weights.objective import CurrentObjective
from .agreeing import Looked, meeting_of, statement_of
from .cycles import CycleKind, within_limit
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
    """Makes a step on a model that is spread over processes; see `fxenorm.rescale.step.step`.

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
            answer, found = step.spread.exchange(step.notes, step.own_logs, step.own_rooms)
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
    """The tensors and sums that one step has looked up before the first collective.

    Args:
        rescaler, request, optimizers, gate: see `step_together`.
    """

    def __init__(self, rescaler: Rescaler, request: StepRequest, optimizers: Sequence[Optimizer], gate: Tensor | None) -> None:
        weights, self.targets = rescaler.targets(optimizers, grads=request.grads, state=request.state, flags=request.frozen)
        if weights.spread is None:
            raise RescaleError("the model's tensors were replaced while they were looked up")
        rescaler.warn_of_gradients(request, optimizers, weights)
        self.weights, self.spread, self._kind = weights, weights.spread, CycleKind.of(weights, request.cycles, request.looks_far)
        self._objective: CurrentObjective | None = None
        self.own_rooms = self.targets.own_headroom()
        self.statement = statement_of(rescaler.analysis, request.words(), optimizers, Looked(weights, self.targets))
        self.notes = self.statement.notes(self.own_rooms, is_open=None if gate is None else local_part(gate))
        # What folded BatchNorms are put together from travels first; with it this process learns whether to go on.
        self.own_logs = None if self.spread.joins else self._read()

    def _read(self) -> Tensor:
        """Returns (2 K,) log N and log P of this process's part."""
        if self._kind.needs_one_sum:
            return torch.cat(self.weights.own_log_sums())
        self._objective = self.weights.objective(self.weights.held_mask())
        return torch.cat(self._objective.own_log_sums())

    def move(self, answer: Answer, found: tuple[Tensor, Tensor] | None) -> None:
        """Rescales; an error of this process between two collectives is raised when all of them are over.

        Args:
            answer: what all processes said.
            found: (2 K,) log N and log P of all, and (2, K) the rooms that all have; None: they are still to be told.
        """
        weights, targets, sums = self.weights, self.targets, self.spread.sums
        if found is None:
            own = sums.own(self._read, 2 * weights.analysis.symmetry.num_scales)
            logs, rooms, _ = sums.with_rooms(own, self.own_rooms)
        else:
            logs, rooms = found
        negative, positive = logs.chunk(2)

        def log_scales() -> Tensor:
            """Returns (K,) log-scales of all cycles, 0 where nothing is to move; one collective a cycle but for the first."""
            total = within_limit(weights, rooms, self._kind, (negative, positive), self._objective)
            return torch.where(answer.goes_on, total, 0.0)

        total = None if self._kind.needs_one_sum else log_scales()

        def rescale() -> None:
            """Rescales, as every process does without another word."""
            targets.apply(log_scales() if total is None else total)

        with weights.journal.promised(rescale, targets.tensors):
            rescale()
        if weights.failures:
            raise weights.failures[0]

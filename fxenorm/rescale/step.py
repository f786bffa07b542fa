"""`Plan.step`, and the same from a hook that may have to undo it without knowing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.optim import Optimizer

from ..distributed.agreement import Statement
from ..distributed.replicas import is_alone
from ..kernels.writes import signals_held_back
from ..weights.shared.replicas import Replicas
from .agreeing import Looked, statement_of
from .cycles import LOOKS_EVERY
from .cycles import cycles as run_cycles
from .nothing import say_if_nothing_moves
from .prepared_step import PreparedStep
from .request import StepRequest
from .rescaler import Rescaler
from .sharded_step import step_together

__all__ = ["step"]


def step(rescaler: Rescaler, request: StepRequest, gate: Tensor | None = None) -> None:
    """Makes a step; with a 0-d bool tensor as gate, nothing moves where that is False, and nothing waits for it.

    But for ``state="reset"``: whether an optimizer has state at all is known to the host alone, which has to read the gate.
    """
    with rescaler.lock:
        if not request.in_hook:
            rescaler.steps += 1
            if rescaler.steps % LOOKS_EVERY == 0:
                request = replace(request, looks_far=True)
        _step(rescaler, request, gate)


def _step(rescaler: Rescaler, request: StepRequest, gate: Tensor | None) -> None:
    """Makes a step while no other thread is in a call of this plan."""
    error: BaseException | None = None
    optimizers: tuple[Optimizer, ...] = ()
    last, rescaler.last_step.prepared = rescaler.last_step.prepared, None
    try:
        optimizers = request.checked()
        if not request.rests:
            say_if_nothing_moves(rescaler, "step", request.frozen)
        rescaler.analysis.executor.count_step()
        last = last if _may_use_last(rescaler, request, optimizers) else None
        if last is not None and not (
            last.weights.flags == request.frozen and last.holds(optimizers, rescaler.tracked, request.grads)
        ):
            last = None
    except BaseException as raised:  # other processes may wait for this one
        error, last = raised, None
    ranks = rescaler.ranks() if last is None else None
    if ranks is not None:
        step_together(rescaler, ranks, request, optimizers, gate, error)
        return
    replicas = rescaler.replicas()
    if replicas is not None and not replicas.skips():
        _step_with_others(rescaler, replicas, request, optimizers, last, gate, error)
        return
    try:
        if error is not None:
            raise error
        if gate is not None and request.state == "reset":
            if not bool(gate):
                return
            gate = None
        if not request.rests:
            _lookups(rescaler, request, optimizers, last).move(rescaler, request.cycles, gate, request.looks_far)
    except BaseException as raised:
        if replicas is not None and not getattr(raised, "carried_out", False):
            replicas.miss()
        raise


def _may_use_last(rescaler: Rescaler, request: StepRequest, optimizers: Sequence[Optimizer]) -> bool:
    """Whether the last step's lookups may serve this one, as far as the call itself says."""
    # load_state_dict gives an optimizer another dict, and leaves the one that is known here as it was.
    known, rescaler.last_step.states = rescaler.last_step.states, [one.state for one in optimizers]
    if rescaler.journal.is_open or len(known) != len(optimizers):
        return False
    if any(one is not other for one, other in zip(known, rescaler.last_step.states, strict=True)):
        return False
    return request.repeats


@dataclass
class _Found:
    """The lookups of one step.

    Attributes:
        looked: the model's tensors and what follows.
        prepared: the same for the next step too; None: it looks them up anew.
    """

    looked: Looked
    prepared: PreparedStep | None

    def move(self, rescaler: Rescaler, cycles: int, gate: Tensor | None, looks_far: bool) -> None:
        """Multiplies what was found: nothing where no scale is free."""
        if not rescaler.num_scales:
            return
        if self.prepared is not None:
            self.prepared.run(cycles, gate, looks_far)
            rescaler.last_step.prepared = self.prepared if self.prepared.serves_next else None
        else:
            weights, targets, _ = self.looked
            scales = run_cycles(weights, targets, cycles, looks_far)
            targets.apply(scales if gate is None else scales * gate.to(scales))
        rescaler.left_gradients.note()


def _lookups(rescaler: Rescaler, request: StepRequest, optimizers: Sequence[Optimizer], last: PreparedStep | None) -> _Found:
    """Returns what is multiplied, checked; the last step's lookups where they still hold."""
    if last is not None:
        found = _Found(Looked(last.weights, last.targets), last)
    else:
        weights, targets = rescaler.targets(optimizers, grads=request.grads, state=request.state, flags=request.frozen)
        statistics = rescaler.analysis.counted.statistics
        if optimizers and rescaler.group is None and statistics and not is_alone(rescaler.model, statistics):
            rescaler.warnings.replicas_may_drift()
        keeps = request.repeats and weights.repeatable and targets.repeatable
        prepared = PreparedStep(weights, rescaler.model, optimizers, rescaler.tracked, targets) if keeps else None
        found = _Found(Looked(weights, targets), prepared)
    rescaler.warn_of_gradients(request, optimizers, found.looked.weights)
    return found


def _step_with_others(
    rescaler: Rescaler,
    replicas: Replicas,
    request: StepRequest,
    optimizers: Sequence[Optimizer],
    last: PreparedStep | None,
    gate: Tensor | None,
    error: BaseException | None,
) -> None:
    """Makes a step as one of many processes with a copy each: all agree once they know what to multiply, and before any does."""
    with signals_held_back():
        try:
            if error is not None:
                raise error
            replicas.late.raise_known()
            if gate is not None and request.state == "reset":
                gate = gate.cpu()
            found = _lookups(rescaler, request, optimizers, last)
            statement = _statement(rescaler, request, optimizers, found)
        except BaseException as raised:  # whatever it is, the others wait
            statement = Statement(error=raised)
        device = rescaler.device()
        waits = request.state == "reset"
        closed = replicas.agree(statement, device, gate, every=request.agree_every, waits=waits)
        if request.rests or (closed is not None and (waits or device.type == "cpu")):
            return

        def rescale() -> None:
            """Rescales, as every process does without another word."""
            found.move(rescaler, request.cycles, closed, request.looks_far)

        with rescaler.journal.promised(rescale, found.looked.targets.tensors):
            rescale()


def _statement(rescaler: Rescaler, request: StepRequest, optimizers: Sequence[Optimizer], found: _Found) -> Statement:
    """Returns the statement of this process; makes it once where steps repeat."""
    said, prepared = request.words(), found.prepared
    if prepared is None:
        return statement_of(rescaler.analysis, said, optimizers, found.looked)
    if said not in prepared.statements:
        prepared.statements[said] = statement_of(rescaler.analysis, said, optimizers, found.looked)
    return prepared.statements[said]

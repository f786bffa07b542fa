"""`Plan.step`, and the same from a hook that may have to undo it without knowing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

from ..distributed.agreement import Statement
from ..distributed.replicas import is_alone
from ..errors import OptionError
from ..kernels.writes import signals_held_back
from ..optim.state import OptimizerLike, StateChoice, check_choice, unwrap_optimizers
from .agreeing import Looked, Replicas, statement_of
from .nothing import say_if_nothing_moves
from .prepared_step import PreparedStep
from .sharded_step import step_together

if TYPE_CHECKING:
    from ..plan.plan import Plan

__all__ = ["Call", "step"]


@dataclass(frozen=True)
class Call:
    """What a step was asked to do; see `Plan.step`.

    Attributes:
        optimizer, cycles, grads, state, agree_every: see there.
        in_hook: whether it is made by the hook of an optimizer's step, where no gradient can be left over.
        rests: whether nothing is to move this time, since the whole model is frozen.
    """

    optimizer: OptimizerLike
    cycles: int
    grads: bool
    state: StateChoice
    agree_every: int = 1
    in_hook: bool = False
    rests: bool = False

    def checked(self) -> tuple[Optimizer, ...]:
        """The optimizers; raises where an argument is not valid."""
        for name, value in (("cycles", self.cycles), ("agree_every", self.agree_every)):
            if type(value) is not int or value < 1:
                raise OptionError(f"{name}={value!r} is not valid: expected an integer >= 1")
        check_choice(self.state)
        return unwrap_optimizers(self.optimizer)

    def said(self) -> tuple[str, ...]:
        """It in words that processes compare."""
        words = [
            "step in a hook" if self.in_hook else "step",
            *(f"{name}={getattr(self, name)!r}" for name in ("cycles", "grads", "state", "agree_every")),
        ]
        return (*words, "with the whole model frozen") if self.rests else tuple(words)


def step(plan: Plan, call: Call, gate: Tensor | None = None) -> None:
    """`Plan.step`; with a 0-d bool tensor as gate, nothing moves where that is False, and nothing waits for it.

    But for ``state="reset"``: whether an optimizer has state at all is known to the host alone, which has to read the gate.
    """
    with plan._one_at_a_time:
        _step(plan, call, gate)


def _step(plan: Plan, call: Call, gate: Tensor | None) -> None:
    """`step`, while no other thread is in a call of this plan."""
    error: BaseException | None = None
    optimizers: tuple[Optimizer, ...] = ()
    last, plan._last_step = plan._last_step, None
    try:
        optimizers = call.checked()
        if not call.rests:
            say_if_nothing_moves(plan, "step")
        plan._core.executor.count_step()
        last = last if _may_repeat(plan, call, optimizers, gate) else None
        if last is not None and not last.holds(optimizers, plan._tracked):
            last = None
    except BaseException as raised:  # other processes may wait for this one
        error, last = raised, None
    ranks = plan._ranks() if last is None else None
    if ranks is not None:
        step_together(plan, ranks, call, optimizers, gate, error)
        return
    replicas = plan._many()
    if replicas is not None and not replicas.skips():
        _step_with_others(plan, replicas, call, optimizers, last, gate, error)
        return
    try:
        if error is not None:
            raise error
        if gate is not None and call.state == "reset":
            if not bool(gate):
                return
            gate = None
        if not call.rests:
            _look_up(plan, call, optimizers, last, gate).move(plan, call.cycles, gate)
    except BaseException as raised:
        if replicas is not None and not getattr(raised, "carried_out", False):
            replicas.miss()
        raise


def _may_repeat(plan: Plan, call: Call, optimizers: Sequence[Optimizer], gate: Tensor | None) -> bool:
    """Whether what the last step has looked up may serve this one, as far as the call itself says."""
    # load_state_dict gives an optimizer another dict, and leaves the one that is known here as it was.
    known, plan._last_states = plan._last_states, [one.state for one in optimizers]
    if plan._journal.is_open or len(known) != len(optimizers):
        return False
    if any(one is not other for one, other in zip(known, plan._last_states, strict=True)):
        return False
    return _is_plain(call, gate)


def _is_plain(call: Call, gate: Tensor | None) -> bool:
    """Whether the same tensors are multiplied every time: gradients, resets and what is gated are looked up anew."""
    return call.state == "reexpress" and not call.grads and gate is None


@dataclass
class _Found:
    """What a step has looked up.

    Attributes:
        looked: the model's tensors and what follows.
        prepared: the same for the next step too; None: it looks them up anew.
    """

    looked: Looked
    prepared: PreparedStep | None

    def move(self, plan: Plan, cycles: int, gate: Tensor | None) -> None:
        """Rescales."""
        if not plan.num_scales:
            return
        if self.prepared is not None:
            self.prepared.run(cycles, gate)
            plan._last_step = self.prepared if self.prepared.repeatable else None
        else:
            snapshot, targets, _ = self.looked
            scales = snapshot.cycles(targets, cycles)
            snapshot.apply(targets, scales if gate is None else scales * gate.to(scales))
        plan._left_gradients.note()


def _look_up(plan: Plan, call: Call, optimizers: Sequence[Optimizer], last: PreparedStep | None, gate: Tensor | None) -> _Found:
    """What is multiplied, checked; the last step's where that still holds."""
    if last is not None:
        found = _Found(Looked(last.snapshot, last.targets), last)
    else:
        snapshot, targets = plan._prepared(optimizers, grads=call.grads, state=call.state)
        statistics = plan._core.objective.statistics
        if optimizers and plan._replicas is None and statistics and not is_alone(plan.model, statistics):
            plan._warnings.apart()
        keeps = _is_plain(call, gate) and snapshot.repeatable
        prepared = PreparedStep(snapshot, plan.model, optimizers, plan._tracked, targets) if keeps else None
        found = _Found(Looked(snapshot, targets), prepared)
    if not optimizers and call.state != "keep" and not call.grads:
        plan._warnings.unseen(found.looked.snapshot.a_gradient())
    if (
        not call.in_hook
        and plan.num_scales
        and plan._left_gradients.are_left(optimizers, found.looked.snapshot, follow=call.grads)
    ):
        plan._warnings.accumulating()
    return found


def _step_with_others(
    plan: Plan,
    replicas: Replicas,
    call: Call,
    optimizers: Sequence[Optimizer],
    last: PreparedStep | None,
    gate: Tensor | None,
    error: BaseException | None,
) -> None:
    """One of many processes with a copy each: all agree once all of them know what to multiply, and before any does."""
    with signals_held_back():
        try:
            if error is not None:
                raise error
            replicas.late.raise_known()
            if gate is not None and call.state == "reset":
                gate = gate.cpu()
            found = _look_up(plan, call, optimizers, last, gate)
            statement = _statement(plan, call, optimizers, found)
        except BaseException as raised:  # whatever it is, the others wait
            statement = Statement(error=raised)
        device = plan._device()
        waits = call.state == "reset"
        closed = replicas.agree(statement, device, gate, every=call.agree_every, waits=waits)
        if call.rests or (closed is not None and (waits or device.type == "cpu")):
            return

        def rescale() -> None:
            """What every process does without another word."""
            found.move(plan, call.cycles, closed)

        with plan._journal.promised(rescale, found.looked.targets):
            rescale()


def _statement(plan: Plan, call: Call, optimizers: Sequence[Optimizer], found: _Found) -> Statement:
    """What this process says; made once where steps repeat."""
    said, prepared = call.said(), found.prepared
    if prepared is None:
        return statement_of(plan, said, optimizers, found.looked)
    if said not in prepared.statements:
        prepared.statements[said] = statement_of(plan, said, optimizers, found.looked)
    return prepared.statements[said]

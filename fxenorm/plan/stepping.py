"""`Plan.step`, and the same from a hook that may have to undo it without knowing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..distributed.replicas import is_alone
from ..errors import OptionError
from ..optim.state import OptimizerLike, StateChoice, unwrap_optimizers
from .fast_step import PreparedStep
from .sharded_step import step_together

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["step"]


def step(
    plan: Plan,
    optimizer: OptimizerLike,
    *,
    cycles: int,
    grads: bool,
    state: StateChoice,
    gate: Tensor | None = None,
    in_hook: bool = False,
) -> None:
    """`Plan.step`; with a 0-d bool tensor as gate, nothing moves where that is False, and nothing waits for it.

    But for ``state="reset"``: whether an optimizer has state at all is known to the host alone, which has to read the gate. In
    the hook of an optimizer's step, no gradient can be left over.
    """
    with plan._one_at_a_time:
        _step(plan, optimizer, cycles, grads, state, gate, in_hook)


def _step(
    plan: Plan, optimizer: OptimizerLike, cycles: int, grads: bool, state: StateChoice, gate: Tensor | None, in_hook: bool
) -> None:
    """`step`, while no other thread is in a call of this plan."""
    if type(cycles) is not int or cycles < 1:
        raise OptionError(f"cycles={cycles!r} is not valid: expected an integer >= 1")
    if gate is not None and state == "reset":
        if not bool(gate):
            return
        gate = None
    optimizers = unwrap_optimizers(optimizer)
    plan._core.executor.count_step()
    last, plan._last_step = plan._last_step, None
    # load_state_dict gives an optimizer another dict, and leaves the one that is known here as it was.
    known, plan._last_states = plan._last_states, [one.state for one in optimizers]
    if (
        plan._journal.is_open
        or len(known) != len(optimizers)
        or any(one is not other for one, other in zip(known, plan._last_states, strict=True))
    ):
        last = None
    # Only what multiplies the same tensors every time is kept for the next call; gradients, resets and lists are looked up anew.
    plain = state == "reexpress" and not grads and gate is None
    if plain and last is not None and last.holds(optimizers, plan._tracked):
        snapshot, targets = last.snapshot, last.targets
    else:
        ranks = plan._ranks()
        if ranks is not None:
            step_together(plan, ranks, optimizers, cycles=cycles, grads=grads, state=state, gate=gate, in_hook=in_hook)
            return
        snapshot, targets = plan._prepared(optimizers, grads=grads, state=state)
        statistics = plan._core.objective.statistics
        if optimizers and plan._replicas is None and statistics and not is_alone(plan.model, statistics):
            plan._warnings.apart()
        last = PreparedStep(snapshot, plan.model, optimizers, plan._tracked, targets) if plain and snapshot.repeatable else None
    if not optimizers and state != "keep" and not grads:
        plan._warnings.unseen(snapshot.a_gradient())
    if not plan.num_scales:
        return
    if not in_hook and plan._left_gradients.are_left(optimizers, snapshot, follow=grads):
        plan._warnings.accumulating()
    if last is not None:
        last.run(cycles)
        plan._last_step = last if last.repeatable else None
    else:
        scales = snapshot.cycles(targets, cycles)
        snapshot.apply(targets, scales if gate is None else scales * gate.to(scales))
    plan._left_gradients.note()

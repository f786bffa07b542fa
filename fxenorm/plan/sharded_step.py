"""`Plan.step` on a model that is spread over processes: one collective a cycle, in which errors travel too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..distributed.dtensors import local_part
from ..distributed.ranks import ELSEWHERE, Ranks
from ..errors import FxenormError, RescaleError
from ..kernels.program import ScaleTarget, float_dtype
from ..optim.state import StateChoice
from ..solve.jacobi import jacobi_step
from ..solve.sweeps import gauss_seidel_sweep
from .iterate import move, round_limit
from .sharded_problem import Reducer
from .sharded_snapshot import ShardedSnapshot
from .shards import empty_objective

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["LateErrors", "step_together"]

_DISAGREEMENT = (
    "the processes disagree about what moves: their plans have different fingerprints, or a parameter has requires_grad on some "
    "of them only. Nothing was rescaled; build the model, the plan and its flags alike everywhere"
)


class LateErrors:
    """Errors of other processes that a step noticed on the device, without waiting for it: raised at the next step."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any] | None = None

    def note(self, flags: Tensor) -> None:
        """Keeps (2,) flags: whether a process has an error, and whether processes disagree; on a CPU they raise at once."""
        if flags.device.type == "cpu":
            _raise_for(flags)
            return
        copy = torch.empty(flags.shape, dtype=flags.dtype, device="cpu", pin_memory=True)
        copy.copy_(flags, non_blocking=True)
        event = torch.get_device_module(flags.device.type).Event()
        event.record()
        self._pending = copy, event

    def raise_known(self) -> None:
        """Raises what has arrived since."""
        if self._pending is not None and self._pending[1].query():
            flags, self._pending = self._pending[0], None
            _raise_for(flags)


def _raise_for(flags: Tensor) -> None:
    """Raises where a flag is set."""
    failed, disagree = flags.tolist()
    if failed:
        raise RescaleError(ELSEWHERE)
    if disagree:
        raise RescaleError(_DISAGREEMENT)


def step_together(
    plan: Plan,
    ranks: Ranks,
    optimizers: Sequence[Optimizer],
    *,
    cycles: int,
    grads: bool,
    state: StateChoice,
    gate: Tensor | None,
    in_hook: bool,
) -> None:
    """See `fxenorm.plan.stepping.step`.

    What goes wrong on one process raises there, and nothing moves on any: on a CPU the others raise in the same call, on a
    device, for which nothing waits, in the next one.
    """
    plan._late_errors.raise_known()
    if not plan.num_scales:
        return
    try:
        snapshot, targets = plan._prepared(optimizers, grads=grads, state=state)
        if not isinstance(snapshot, ShardedSnapshot):
            raise RescaleError("the model's tensors were replaced while they were looked up")
    except FxenormError:
        _take_part_without(plan, ranks)
        raise
    if not optimizers and state != "keep" and not grads:
        plan._warnings.unseen(snapshot.a_gradient())
    if not in_hook and plan._left_gradients.are_left(optimizers, snapshot, follow=grads):
        plan._warnings.accumulating()
    scales = _cycles(snapshot, targets, cycles, None if gate is None else local_part(gate), plan._late_errors)
    snapshot.apply(targets, scales)
    plan._left_gradients.note()


def _cycles(
    snapshot: ShardedSnapshot, targets: Sequence[ScaleTarget], count: int, gate: Tensor | None, errors: LateErrors
) -> Tensor:
    """(K,) log-scales of `count` cycles as `Snapshot.cycles` takes them, 0 where anything is wrong on any process."""
    core, device, options = snapshot.core, snapshot.device, snapshot.core.options
    degree, held, powers_of_two = snapshot.program.degree, snapshot.held_mask(), snapshot.powers_of_two()
    gauss_seidel = options.solver.endswith("gauss-seidel") and powers_of_two is None
    alone = count == 1 and powers_of_two is None and not gauss_seidel
    problem = None if alone else snapshot.problem(held)
    if problem is None:
        logs = snapshot.local_logs()
    else:
        logs = problem.local_logs()
    room = snapshot.backend.headroom(snapshot.followers_of(targets), device)
    is_open = torch.ones_like(room) if gate is None else gate.to(room)
    notes = _notes(room, is_open, failed=False, signature=_signature(snapshot))
    found, board = snapshot.reducer("sums", logs, notes)
    flags = torch.stack([board[:, 1].amax() > 0, (board[:, 3] != board[0, 3]).any()])
    errors.note(flags)
    limit = board[:, 0].amin() / core.on_device("reach", core.reach, device)
    if core.most_log_scale is not None:
        limit = limit.clamp(max=core.most_log_scale)
    if powers_of_two is not None:
        limit = round_limit(limit, powers_of_two)
    if problem is None:
        negative, positive = found.chunk(2)
        total = jacobi_step(negative, positive, degree, options.p, held, limit)
    else:
        problem = replace(problem, limit=limit)
        total = torch.zeros_like(degree)
        for cycle in range(count):
            if gauss_seidel:
                total = gauss_seidel_sweep(problem, total)
                continue
            negative, positive = problem.log_sums(total) if cycle else found.chunk(2)
            total = move(problem, total, jacobi_step(negative, positive, degree, options.p, held), powers_of_two)
    return torch.where(flags.any(), 0.0, total) * board[:, 2].amin()


def _take_part_without(plan: Plan, ranks: Ranks) -> None:
    """The first collective of a step, on a process that has nothing but an error to say."""
    local = empty_objective(plan._core)
    logs = torch.full_like(local.reference, -torch.inf).to(ranks.device, float_dtype(ranks.device))
    room = torch.zeros_like(logs[:1]).reshape(())
    notes = _notes(room, torch.zeros_like(room), failed=True, signature=0)
    Reducer(ranks, plan.options.p, local.reference.to(logs))("sums", logs, notes)


def _notes(room: Tensor, is_open: Tensor, *, failed: bool, signature: int) -> Tensor:
    """(4,) what every process tells the others beside its sums."""
    # Filled on the device: a copy from the host would wait for it.
    said = [torch.full_like(room, float(failed)), torch.full_like(room, float(signature))]
    return torch.stack([room, said[0], is_open.reshape(()), said[1]])


def _signature(snapshot: ShardedSnapshot) -> int:
    """A number below 2 ** 48 that differs where plans, held variables or the rounding to powers of two differ."""
    digest = hashlib.sha256(snapshot.core.fingerprint.encode())
    digest.update(",".join(sorted(snapshot.frozen)).encode())
    digest.update(str(snapshot.powers_of_two() is None).encode())
    return int(digest.hexdigest()[:12], 16)

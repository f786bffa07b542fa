"""How the processes of one model agree on a call of a plan: what they compare, and what replicas of a whole model need."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..distributed.agreement import Answer, LateAnswers, Meeting, Statement
from ..distributed.ranks import Ranks, replica_ranks
from ..errors import RescaleError
from ..kernels.backend import Backend
from ..kernels.choice import HERE, NOT_YET, ExecutorChoice
from ..kernels.program import ScaleTarget
from ..optim.state import OptimizerLike, unwrap_optimizers
from .warn_once import WarnOnce

if TYPE_CHECKING:
    from ..analysis.analysis import Core
    from ..plan.plan import Plan
    from ..weights.weights import Snapshot

__all__ = ["Looked", "Replicas", "look_up_together", "meeting_of", "statement_of"]


class Looked(NamedTuple):
    """What a call has looked up and checked before it writes.

    Attributes:
        snapshot: the model's tensors.
        targets: what follows a rescaling.
        log_scales: (num_scales,) where they were given.
    """

    snapshot: Snapshot
    targets: list[ScaleTarget]
    log_scales: Tensor | None = None


_MISSED = (
    "between two agreements (agree_every) an error has kept this process from a rescaling that others may have made: nothing was "
    "rescaled now. Load the model and its optimizer from one checkpoint on every process"
)


class Replicas:
    """The processes that hold a copy each of the model of one plan (DistributedDataParallel).

    Args:
        group: their process group.
        choice: this process's executors.
        warnings: the plan's.
    """

    def __init__(self, group: Any, choice: ExecutorChoice, warnings: WarnOnce) -> None:
        self.group, self._choice, self._warnings = group, choice, warnings
        self.is_many = bool(group.size() > 1)
        self.late = LateAnswers()
        self._meetings: dict[torch.device, Meeting] = {}
        self._standing = NOT_YET
        self._skips, self._has_missed = 0, False

    @property
    def backend(self) -> Backend:
        """The executor that all of them use; the compiled one from the agreement on at which all had it."""
        return self._choice.taken(self._standing == HERE)

    def meeting(self, device: torch.device) -> Meeting:
        """How they agree, for a model on a device."""
        known = self._meetings.get(device)
        if known is None:
            known = self._meetings[device] = Meeting(replica_ranks(self.group, device))
        return known

    def ranks(self, device: torch.device) -> Ranks:
        """The processes, for a model on a device."""
        return self.meeting(device).ranks

    def skips(self) -> bool:
        """Whether this step is one of those that `agree_every` leaves out; counts it."""
        self._skips -= 1
        return self._skips >= 0

    def miss(self) -> None:
        """Notes that this process has not made a rescaling that the others may have made."""
        self._has_missed = True

    def agree(
        self,
        statement: Statement,
        device: torch.device,
        is_open: Tensor | None = None,
        *,
        every: int = 1,
        waits: bool = False,
    ) -> Tensor | None:
        """Tells the others what is about to be done; every process has to come here, also with an error.

        Args:
            statement: what this process is about to do.
            device: the model's.
            is_open: 0-d, whether anything is to move; None: it is.
            every: the steps from this agreement to the next.
            waits: whether to wait for a device.

        Returns:
            None: go on. Else a 0-d bool by which everything is gated: on a CPU it is False, on a device nobody knows yet.

        Raises:
            AgreementError: see `settle`. Where nothing waits for a device, it is raised at a later step.
        """
        self._skips, standing = 0, HERE
        has_missed, self._has_missed = self._has_missed, False
        try:
            standing = self._choice.standing()
            if has_missed:
                raise RescaleError(_MISSED)
        except BaseException as error:  # a warning that was turned into an error; the others wait
            statement = statement if statement.error is not None else Statement(error=error)
        meeting = self.meeting(device)
        if waits or device.type == "cpu":
            answer = meeting.agree(statement, is_open, standing)
            self._take(answer, standing, meeting.ranks)
            self._skips = every - 1
            return None if answer.moves else answer.goes_on
        answer = meeting.ask(statement, is_open, standing)
        if statement.error is not None:
            raise statement.error
        self.late.note(answer, meeting.ranks)
        self._skips = every - 1
        return answer.goes_on

    def _take(self, answer: Answer, standing: int, ranks: Ranks) -> None:
        """Notes the executor; all processes switch at the same call."""
        self._standing = answer.executor
        if standing == HERE and answer.without_kernels:
            self._warnings.without_kernels([ranks.members[place] for place in answer.without_kernels])


def meeting_of(core: Core, ranks: Ranks) -> Meeting:
    """How the processes agree over which a model is spread."""
    return Meeting(ranks, core.options.p, core.least_message)


def look_up_together(plan: Plan, call: Sequence[str], look: Callable[[], Looked], optimizer: OptimizerLike = None) -> Looked:
    """What a call looks up before it writes; on several processes it returns on all of them, or raises on all of them.

    Args:
        plan: the plan.
        call: the method and its arguments, in words.
        look: looks up, checks, and raises what is wrong.
        optimizer: as users pass it.

    Raises:
        AgreementError: another process met an error, or was asked for something else.
    """
    ranks, replicas = plan._ranks(), plan._many()
    if ranks is None and replicas is None:
        return look()
    found = None
    try:
        found = look()
        statement = statement_of(plan, call, unwrap_optimizers(optimizer), found)
    except BaseException as error:  # whatever it is, the others wait
        statement = Statement(error=error)
    if ranks is not None:
        meeting_of(plan._core, ranks).agree(statement)
    elif replicas is not None:
        replicas.agree(statement, plan._device(), waits=True)
    if found is None:
        raise RuntimeError("an agreement on an error raises")
    return found


def statement_of(plan: Plan, call: Sequence[str], optimizers: Sequence[Optimizer], found: Looked) -> Statement:
    """What this process says of a call.

    Args:
        plan: the plan.
        call: the method and its arguments, in words.
        optimizers: whose state follows.
        found: what was looked up.
    """
    core, snapshot = plan._core, found.snapshot
    options = dataclasses.fields(core.options)
    own = core.symmetry.exponents
    followers = ((target.name.partition(" of ")[0], target.power) for target in found.targets if target.name not in own)
    kinds = {f"{kind} to the power {power}" for kind, power in followers if kind not in ("copy", "gradient")}
    log_scales = () if found.log_scales is None else (_said_of_log_scales(found.log_scales),)
    return Statement(
        {
            "plan": (
                *(f"{field.name}={getattr(core.options, field.name)!r}" for field in options),
                f"fingerprint {core.fingerprint[:12]}",
            ),
            "call": tuple(call),
            "optimizers": (*(type(optimizer).__qualname__ for optimizer in optimizers), *sorted(kinds)),
            "tracked copies": snapshot.said_of_copies(),
            "flags": snapshot.said_of_flags(),
            "types": snapshot.said_of_types(),
            "log_scales": log_scales,
        }
    )


def _said_of_log_scales(log_scales: Tensor) -> str:
    """A hash of numbers, with one by which people can tell them apart."""
    values = log_scales.detach().to("cpu", torch.float64).contiguous()
    largest = float(values.abs().amax()) if values.numel() else 0.0
    return f"{hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12]} (largest {largest:.6g})"

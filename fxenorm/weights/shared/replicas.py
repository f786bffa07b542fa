"""The processes that hold a copy each of one model, and how they agree on a call and on an executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...distributed.agreement import Answer, LateAnswers, Meeting, Statement
from ...distributed.ranks import Ranks, replica_ranks
from ...errors import RescaleError
from ...kernels.backend import Backend
from ...kernels.choice import HERE, NOT_YET, ExecutorChoice

__all__ = ["Replicas"]

_MISSED = (
    "between two agreements (agree_every) an error has kept this process from a rescaling that others may have made: nothing was "
    "rescaled now. Load the model and its optimizer from one checkpoint on every process"
)


class Replicas:
    """The processes that hold a copy each of the model of one plan (DistributedDataParallel).

    Args:
        group: their process group.
        choice: this process's executors.
        warn: warns that all do without compiled kernels; takes the ranks that cannot have them.
    """

    def __init__(self, group: Any, choice: ExecutorChoice, warn: Callable[[Sequence[int]], None]) -> None:
        self.group, self._choice, self._warn = group, choice, warn
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
        """Returns the meeting at which they agree, for a model on a device; made once."""
        known = self._meetings.get(device)
        if known is None:
            known = self._meetings[device] = Meeting(replica_ranks(self.group, device))
        return known

    def ranks(self, device: torch.device) -> Ranks:
        """Returns the processes, for a model on a device."""
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
        """Tells the others the call that is about to be made; every process has to come here, also with an error.

        Args:
            statement: the call that this process is about to make.
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
        """Notes the executor that all can use; all processes switch at the same call."""
        self._standing = answer.executor
        if standing == HERE and answer.without_kernels:
            self._warn([ranks.members[place] for place in answer.without_kernels])

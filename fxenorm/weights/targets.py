"""`Targets`: everything that one rescaling multiplies, found and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.processes import Processes
from ..errors import RescaleError
from ..kernels.backend import Backend
from ..kernels.program import ScaleTarget
from ..kernels.writes import signals_held_back
from .followers import Followers
from .journal import Journal
from .shared.sums import Sums

__all__ = ["Targets", "checked_log_scales"]

_TOLD = (
    "another process (rank {}) met an error while it rescaled, and its own message says which: this process has rescaled, and "
    "that one too, or does so at its next call or plan.repair()"
)


@dataclass(frozen=True, eq=False)
class Targets:
    """All tensors that one rescaling multiplies, and all that follows; nothing is written yet, and no call depends on another.

    Attributes:
        tensors: parameters, moved buffers, tracked copies, optimizer state, gradients; of each this process's part.
        followers: all else that follows once they are multiplied.
        backend: returns the executor to use now.
        journal: carries out the writes.
        sums: makes answers of all processes from those of this one.
        others: the processes that are told of an error in the writes.
        num_scales: number of variables.
        device: where log-scales live.
    """

    tensors: list[ScaleTarget]
    followers: Followers
    backend: Callable[[], Backend]
    journal: Journal
    sums: Sums
    others: Processes
    num_scales: int
    device: torch.device

    @property
    def repeatable(self) -> bool:
        """Whether `tensors` says all, so that the same call may use them again while nothing is replaced."""
        return self.followers.repeatable

    def apply(self, log_scales: Tensor) -> None:
        """Multiplies the tensors and lets everything else follow: all of it, or none."""
        after = self.followers.after()
        self.journal.carry_out([*self.backend().writes(self.tensors, log_scales), *after])

    def apply_and_tell(self, log_scales: Tensor) -> None:
        """Does what `apply` does; other processes, if any, hear of an error in the writes by one collective.

        Raises:
            AgreementError: another process met an error.
        """
        if self.others.is_alone:
            self.apply(log_scales)
            return
        error: BaseException | None = None
        with signals_held_back():
            try:
                with self.journal.promised(lambda: self.apply(log_scales), self.tensors):
                    self.apply(log_scales)
            except BaseException as found:  # the others wait to hear of it
                error = found
            self.others.tell(error, _TOLD)

    def own_headroom(self) -> Tensor:
        """Returns (2, K) how far each variable can go up and down before an entry on this process leaves its room."""
        return self.backend().rooms(self.tensors, self.num_scales, self.device)

    def headroom(self) -> Tensor:
        """Returns (2, K) `own_headroom`, the least of all processes."""
        return self.sums.least(self.own_headroom, self.num_scales)

    def overflowing(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) bool: the variables that move an entry out of its room, on any process."""
        return self.sums.anywhere(lambda: self.backend().leaving(self.tensors, log_scales), log_scales.numel())

    def rounded(self, log_scales: Tensor) -> int:
        """Returns how many entries lose digits that powers of two should leave; copies of one count once a process."""
        return self.sums.number(lambda: self.backend().rounded(self.tensors, log_scales))

    def refuse_overflow(self, log_scales: Tensor) -> None:
        """Raises a RescaleError that names the first tensor with an entry that would leave its type's range."""
        for target in self.tensors:
            if bool(self.backend().overflowing([target], log_scales).any()):
                raise RescaleError(
                    f"log_scales (largest absolute value {float(log_scales.abs().max()):.3g}) would overflow {target.name!r} of "
                    f"type {target.tensor.dtype}: nothing was rescaled; use smaller ones"
                )


def checked_log_scales(log_scales: Tensor | Sequence[float], num_scales: int) -> Tensor:
    """Returns log-scales as a finite float tensor of shape (num_scales,); raises a RescaleError where they are not that."""
    try:
        scales = (
            log_scales.detach()
            if isinstance(log_scales, Tensor)
            else torch.as_tensor(log_scales, dtype=torch.float64, device="cpu")
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise RescaleError(f"log_scales must be a tensor or a sequence of {num_scales} floats: {error}") from error
    if tuple(scales.shape) != (num_scales,):
        raise RescaleError(f"log_scales has shape {tuple(scales.shape)}; this plan expects ({num_scales},)")
    if not scales.is_floating_point():
        raise RescaleError(f"log_scales has type {scales.dtype}: expected floats (natural logarithms)")
    broken = ~scales.isfinite()
    if bool(broken.any()):
        raise RescaleError(f"log_scales is not finite in {int(broken.sum())} places: nothing was rescaled")
    return scales

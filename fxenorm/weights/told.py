"""A rescaling that several processes make, and an error in the writes of one of them, told to all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..distributed.ranks import Ranks
from ..kernels.program import ScaleTarget
from ..kernels.writes import signals_held_back
from .weights import Snapshot

__all__ = ["apply_and_tell"]

_TOLD = (
    "another process (rank {}) met an error while it rescaled, and its own message says which: this process has rescaled, and "
    "that one too, or does so at its next call or plan.repair()"
)


def apply_and_tell(snapshot: Snapshot, ranks: Ranks, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
    """Rescales, and then one collective in which an error in the writes of any process is raised on all.

    Args:
        snapshot, targets, log_scales: as in `Snapshot.apply`.
        ranks: the processes.

    Raises:
        AgreementError: another process met an error.
    """
    error: BaseException | None = None
    with signals_held_back():
        try:
            with snapshot.journal.promised(lambda: snapshot.apply(targets, log_scales), targets):
                snapshot.apply(targets, log_scales)
        except BaseException as found:  # the others wait to hear of it
            error = found
        ranks.tell(error, _TOLD)

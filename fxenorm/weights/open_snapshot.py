"""Which kind of snapshot a model needs: by how it lies on processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from ..analysis.analysis import Analysis
from ..distributed.agreement import Statement
from ..distributed.dtensors import is_distributed, reshard
from ..distributed.ranks import ranks_of
from ..distributed.replicas import agreed_values
from ..errors import RescaleError
from ..kernels.backend import Backend
from ..kernels.program import ScaleTarget
from .replicas import Replicas
from .sharded_snapshot import ShardedSnapshot
from .told import apply_and_tell
from .tracked import Tracked
from .weights import Snapshot, Solved

__all__ = ["ReplicatedSnapshot", "open_snapshot"]

T = TypeVar("T")


class ReplicatedSnapshot(Snapshot):
    """See `Snapshot`, of a model of which every process has a copy.

    Each process has seen other batches and has running statistics of its own, so where the objective reads those of
    BatchNorms, the first one's are used by all.

    Args:
        analysis, model, tracked: see `Snapshot`.
        replicas: the processes.
    """

    def __init__(self, analysis: Analysis, model: nn.Module, tracked: Sequence[Tracked], replicas: Replicas) -> None:
        super().__init__(analysis, model, tracked)
        self._replicas = replicas
        self._statistics: dict[str, Tensor] | None = None

    @property
    def backend(self) -> Backend:
        """The executor that all processes use."""
        return self._replicas.backend

    @property
    def repeatable(self) -> bool:
        """False where statistics are read: they change at every forward pass."""
        return super().repeatable and not self.analysis.objective.statistics

    def gather(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The counted tensors and their factors, the same on every process; one broadcast where statistics are read."""
        if not self.analysis.objective.statistics:
            return super().gather()
        if self._statistics is None:
            own = {name: self._read[name] for name in self.analysis.objective.statistics}
            self._statistics = agreed_values(self._replicas.group, own)
        return self.analysis.objective.gather({**self._read, **self._statistics})

    def agreed_scales(self, solve: Callable[[], Solved[T]]) -> Solved[T]:
        """Those of the first process, by one broadcast, once all have found some in the same basis."""
        try:
            found = solve()
            statement = Statement(
                {"free scales": (f"{found.log_scales.numel()} in basis {found.snapshot.analysis.fingerprint[:8]}",)}
            )
        except BaseException as error:  # whatever it is, the others wait
            statement = Statement(error=error)
        self._replicas.agree(statement, self.device, waits=True)
        agreed = agreed_values(self._replicas.group, {"log_scales": found.log_scales})
        return replace(found, log_scales=agreed["log_scales"])

    def apply_told(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """`apply`, and one collective in which an error in the writes of any process is raised on all."""
        apply_and_tell(self, self._replicas.ranks(self.device), targets, log_scales)


def open_snapshot(analysis: Analysis, model: nn.Module, tracked: Sequence[Tracked], replicas: Replicas | None) -> Snapshot:
    """The model's tensors now.

    Args:
        analysis: the plan without its module.
        model: the module, without wrappers.
        tracked: copies that follow.
        replicas: the processes of DistributedDataParallel; None: there are no others.

    Raises:
        BindError, RescaleError: see `Snapshot`, `ShardedSnapshot` and `ranks_of`.
    """
    reshard(model)
    ranks = ranks_of(model.parameters())
    if ranks is not None:
        return ShardedSnapshot(analysis, model, tracked, ranks)
    for copy in tracked:
        if any(is_distributed(tensor) for tensor in copy.tensors(model).values()):
            raise RescaleError("a tracked copy is spread over processes and the model is not: shard both, or neither")
    if replicas is not None:
        return ReplicatedSnapshot(analysis, model, tracked, replicas)
    return Snapshot(analysis, model, tracked)

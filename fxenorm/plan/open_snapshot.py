"""Which kind of snapshot a model needs: by how it lies on processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..distributed.dtensors import is_distributed, reshard
from ..distributed.ranks import ranks_of
from ..distributed.replicas import agreed_values
from ..errors import RescaleError
from .core import Core
from .sharded_snapshot import ShardedSnapshot
from .snapshot import Snapshot
from .track import Tracked

__all__ = ["ReplicatedSnapshot", "open_snapshot"]


class ReplicatedSnapshot(Snapshot):
    """See `Snapshot`, of a model of which every process has a copy, where the objective reads BatchNorm's running statistics.

    Each process has seen other batches and has statistics of its own, so those of the first are used by all.

    Args:
        core, model, tracked: see `Snapshot`.
        group: the process group of the copies.
    """

    def __init__(self, core: Core, model: nn.Module, tracked: Sequence[Tracked], group: Any) -> None:
        super().__init__(core, model, tracked)
        self._group = group

    @property
    def repeatable(self) -> bool:
        """False: the statistics change at every forward pass."""
        return False

    def gather(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The counted tensors and their factors, the same on every process; one broadcast."""
        own = {name: self._read[name] for name in self.core.objective.statistics}
        return self.core.objective.gather({**self._read, **agreed_values(self._group, own)})


def open_snapshot(core: Core, model: nn.Module, tracked: Sequence[Tracked], replicas: Any) -> Snapshot:
    """The model's tensors now.

    Args:
        core: the plan without its module.
        model: the module, without wrappers.
        tracked: copies that follow.
        replicas: the process group of DistributedDataParallel, or None.

    Raises:
        BindError, RescaleError: see `Snapshot`, `ShardedSnapshot` and `ranks_of`.
    """
    reshard(model)
    ranks = ranks_of(model.parameters())
    if ranks is not None:
        return ShardedSnapshot(core, model, tracked, ranks)
    for copy in tracked:
        if any(is_distributed(tensor) for tensor in copy.tensors(model).values()):
            raise RescaleError("a tracked copy is spread over processes and the model is not: shard both, or neither")
    if replicas is not None and replicas.size() > 1 and core.objective.statistics:
        return ReplicatedSnapshot(core, model, tracked, replicas)
    return Snapshot(core, model, tracked)

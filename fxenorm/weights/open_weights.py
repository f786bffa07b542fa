"""Opens a model's weights for one call: by how they lie on processes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..analysis.analysis import Analysis
from ..analysis.held import FrozenChoice
from ..distributed.dtensors import is_distributed, reshard
from ..distributed.ranks import ranks_of
from ..errors import RescaleError
from .journal import Journal
from .shared.replicas import Replicas
from .tracked import Tracked
from .weights import Weights

__all__ = ["open_weights"]


def open_weights(
    analysis: Analysis,
    model: nn.Module,
    tracked: Sequence[Tracked],
    journal: Journal,
    replicas: Replicas | None,
    flags: FrozenChoice = "auto",
) -> Weights:
    """Returns the model's tensors now.

    Args:
        analysis: the plan without its module.
        model: the module, without wrappers.
        tracked: copies that follow.
        journal: carries out the writes.
        replicas: the processes of DistributedDataParallel; None: there are no others.
        flags: how parameters with requires_grad=False are treated.

    Raises:
        BindError, RescaleError: see `Weights` and `ranks_of`.
    """
    reshard(model)
    ranks = ranks_of(model.parameters())
    if ranks is not None:
        return Weights(analysis, model, tracked, journal, ranks=ranks, flags=flags)
    for copy in tracked:
        if any(is_distributed(tensor) for tensor in copy.tensors(model).values()):
            raise RescaleError("a tracked copy is spread over processes and the model is not: shard both, or neither")
    return Weights(analysis, model, tracked, journal, replicas=replicas, flags=flags)

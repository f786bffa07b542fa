"""Whole models on many processes (DistributedDataParallel): values that may differ are taken from the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["agreed_values", "is_alone", "is_one_of_many"]


def is_one_of_many() -> bool:
    """Whether other processes take part in whatever this one does."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_alone(model: nn.Module, statistics: Iterable[str]) -> bool:
    """Whether running statistics are the same wherever this model is trained, as far as can be seen.

    Args:
        model: the module.
        statistics: names of the buffers.
    """
    if not is_one_of_many():
        return True
    return all(isinstance(model.get_submodule(name.rpartition(".")[0]), nn.SyncBatchNorm) for name in statistics)


def agreed_values(group: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the first process's values of some tensors, by one broadcast a device and type; the tensors are left alone.

    Args:
        group: the process group.
        tensors: of the same shapes on every process.
    """
    import torch.distributed as dist

    source = dist.get_global_rank(group, 0)
    kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name in tensors:
        kinds.setdefault((tensors[name].device, tensors[name].dtype), []).append(name)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for names in kinds.values():
            flat = torch.cat([tensors[name].reshape(-1) for name in names])
            dist.broadcast(flat, source, group=group)
            parts = torch.split(flat, [tensors[name].numel() for name in names])
            for name, part in zip(names, parts, strict=True):
                found[name] = part.view(tensors[name].shape)
    return found

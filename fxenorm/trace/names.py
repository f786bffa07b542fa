"""Names of a model's tensors: ties, and tensors that overlap in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["overlapping", "storage_id", "tied_names"]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Returns, for every further name of a parameter or buffer, its first name in registration order.

    Two parameters that are the same view of the same memory are one tensor, as one parameter under two names is.
    """
    aliases: dict[str, str] = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        first: dict[Any, str] = {}
        for name, tensor in named:
            known = first.setdefault(_view_of(tensor), name)
            if known != name:
                aliases[name] = known
    return aliases


def _view_of(tensor: torch.Tensor) -> Any:
    """Returns a key that is equal for two tensors which are the same view of the same memory, as long as both live."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    storage = storage_id(tensor) if plain and tensor.numel() else 0
    if not storage:
        return id(tensor)
    bits = tensor.is_conj(), tensor.is_neg()
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, bits


def storage_id(tensor: torch.Tensor) -> int:
    """Identity of the memory behind `tensor` while it lives; 0 for sparse and wrapper tensors, which have none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def overlapping(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[tuple[str, ...], ...]:
    """Blocks of names of distinct tensors whose byte ranges in one storage overlap."""
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    order: dict[str, int] = {}
    for name, tensor in tensors:
        order.setdefault(name, len(order))
        storage = storage_id(tensor)
        if not storage or tensor.numel() == 0:
            continue
        start = tensor.storage_offset() * tensor.element_size()
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        by_storage.setdefault(storage, []).append((int(start), int(start + span * tensor.element_size()), name))
    blocks: list[tuple[str, ...]] = []
    for ranges in by_storage.values():
        if len(ranges) < 2:
            continue
        # A cuDNN LSTM keeps its weights side by side in one storage: only true overlaps count.
        block: list[str] = []
        reach = -1
        for start, end, name in sorted(ranges):
            if start >= reach and block:
                blocks.append(tuple(sorted(block, key=order.__getitem__)))
                block = []
            block.append(name)
            reach = max(reach, end)
        blocks.append(tuple(sorted(block, key=order.__getitem__)))
    return tuple(block for block in blocks if len(block) > 1)

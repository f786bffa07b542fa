"""Distributed tensors as objects, without importing their classes: a model that has none need not load them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RescaleError

__all__ = ["Memory", "is_distributed", "local_part", "memory_of", "refuse_flat_parameters", "reshard", "sharding_modules"]


def is_distributed(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor, as the same memory; the tensor itself where it is an ordinary one."""
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():
        held: Any = tensor
        part: Tensor = held.to_local()
    return part


Memory = tuple[Any, ...]
"""A device and an address, or, where a tensor is made of others, theirs."""


def memory_of(tensor: Tensor) -> Memory:
    """Returns the place where a tensor's values begin, on this process; address 0 where it holds none."""
    part = local_part(tensor)
    if type(part) in (Tensor, nn.Parameter):
        return tensor.device, _address(part)
    inner = getattr(part, "__tensor_flatten__", None)
    if inner is None:
        return tensor.device, _address(part)
    names, _ = inner()
    return tuple(memory_of(getattr(part, name)) for name in names)


def _address(tensor: Tensor) -> int:
    """Returns the address of the entries; the object's identity where a tensor tells no address."""
    if tensor.layout != torch.strided:
        return id(tensor)
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def sharding_modules(model: nn.Module) -> Iterator[Any]:
    """Yields the modules that `fully_shard` was called on."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    if loaded is not None:
        yield from (module for module in model.modules() if isinstance(module, loaded.FSDPModule))


def reshard(model: nn.Module) -> None:
    """Has the modules of `fully_shard` show their shards: after a forward pass without gradients some show gathered copies."""
    for module in sharding_modules(model):
        module.reshard()


def refuse_flat_parameters(model: nn.Module) -> None:
    """Raises a RescaleError where FullyShardedDataParallel (FSDP1) has flattened the parameters."""
    if _has_flat_parameters(model.modules(), model.parameters()):
        raise RescaleError(
            "the model is wrapped by FullyShardedDataParallel (FSDP1), which flattens all weights of a unit into one vector and "
            "cuts that across channels, so that its parts cannot be rescaled: nothing was. Use "
            "torch.distributed.fsdp.fully_shard (FSDP2), which keeps the tensors; or analyse and balance before wrapping"
        )


def _has_flat_parameters(modules: Iterable[nn.Module], parameters: Iterable[Tensor]) -> bool:
    """Whether FSDP1 is at work in a model or around it."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(loaded, "FullyShardedDataParallel", None)
    if kind is None:
        return False
    return any(isinstance(module, kind) for module in modules) or any(
        getattr(parameter, "_fsdp_flattened", False) or type(parameter).__name__ == "FlatParameter" for parameter in parameters
    )

"""A model whose weights Accelerate brings in from elsewhere at each call, shown to the tracer as an ordinary one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["without_offloading"]


@contextlib.contextmanager
def without_offloading(model: nn.Module) -> Iterator[bool]:
    """Within it, modules run without Accelerate's hooks, and each offloaded tensor is one zero, expanded.

    At exit all is as before. Yields whether anything was offloaded. Hooks of models that have all their weights stay.
    """
    hooked = [module for module in model.modules() if hasattr(module, "_hf_hook") and hasattr(module, "_old_forward")]
    tensors = (*model.parameters(), *model.buffers())
    if not hooked or not any(tensor.is_meta for tensor in tensors):
        yield False
        return
    stand_ins: dict[int, Tensor] = {}
    with contextlib.ExitStack() as undo:
        for module in hooked:
            held = vars(module)
            undo.callback(held.__setitem__, "forward", held["forward"])
            held["forward"] = held["_old_forward"]
        for module in model.modules():
            device = _device(module)
            registered: list[dict[str, Any]] = [module._parameters, module._buffers]
            for held in registered:
                undo.callback(_restore, held, dict(held))
                for name, tensor in held.items():
                    if tensor is not None and tensor.is_meta:
                        held[name] = stand_ins.setdefault(id(tensor), _stand_in(tensor, device))
        yield True


def _device(module: nn.Module) -> torch.device:
    """Returns the device to which the module's hook would bring its weights."""
    found = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if found is None else f"cuda:{found}" if isinstance(found, int) else found)


def _stand_in(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the same shape that takes no memory."""
    zero = torch.zeros((), dtype=tensor.dtype, device=device).expand(tensor.shape)
    return nn.Parameter(zero, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else zero


def _restore(held: dict[str, Any], before: dict[str, Any]) -> None:
    held.clear()
    held.update(before)

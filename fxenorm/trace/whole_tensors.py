"""A model that is spread over processes, shown to the tracer as one whole: nothing is communicated or allocated for it."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed.dtensors import is_distributed, local_part

__all__ = ["whole_tensors"]


@contextlib.contextmanager
def whole_tensors(model: nn.Module) -> Iterator[None]:
    """Within it, distributed parameters and buffers are ordinary ones of the whole shape, and no module communicates.

    The stand-ins are one zero, expanded: a trace reads no weights. The hooks of `fully_shard` and of tensor parallelism would
    gather weights and turn activations into distributed tensors, and SyncBatchNorm would sum over processes: neither changes
    what is a rescaling. At exit all is as before.
    """
    stand_ins: dict[int, Tensor] = {}
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                if any(is_distributed(tensor) for tensor in held.values()):
                    undo.callback(_restore, held, dict(held))
                    _replace(held, stand_ins)
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                kept = {key: hook for key, hook in hooks.items() if not _is_torchs(hook)}
                if len(kept) < len(hooks):
                    undo.callback(_restore, hooks, dict(hooks))
                    _restore(hooks, kept)
            if isinstance(module, nn.SyncBatchNorm) and "forward" not in vars(module):
                undo.callback(vars(module).pop, "forward")
                vars(module)["forward"] = types.MethodType(_BatchNorm.forward, module)
        yield


def _restore(held: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Gives a dict its former content back."""
    held.clear()
    held.update(before)


def _replace(held: dict[str, Any], stand_ins: dict[int, Tensor]) -> None:
    """Puts ordinary tensors in the place of distributed ones; one that stands under several names stays one."""
    for name, tensor in held.items():
        if not is_distributed(tensor):
            continue
        known = stand_ins.get(id(tensor))
        if known is None:
            part = local_part(tensor)
            if part.shape == tensor.shape:
                whole = part.detach()  # the values of integers may matter to the graph
            else:
                whole = torch.zeros((), dtype=tensor.dtype, device=part.device).expand(tensor.shape)
            known = nn.Parameter(whole, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole
            stand_ins[id(tensor)] = known
        held[name] = known


def _is_torchs(hook: Any) -> bool:
    """Whether a hook comes from torch.distributed."""
    while hasattr(hook, "func"):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")

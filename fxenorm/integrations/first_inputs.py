"""The inputs of a module's first forward call in a training loop, whatever the batches look like."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["FirstInputs", "fitted"]


class FirstInputs:
    """Records the arguments of the next forward call, then takes its hook off again.

    Args:
        module: whose forward.
        without: names of keyword arguments that are left out, as labels.
    """

    def __init__(self, module: nn.Module, without: Collection[str] = ()) -> None:
        self.arguments: tuple[Any, ...] | None = None
        self.keywords: dict[str, Any] = {}
        self._without = without
        self._hook = module.register_forward_pre_hook(self._record, with_kwargs=True)

    def remove(self) -> None:
        """Stops waiting for the first call of the model."""
        self._hook.remove()

    def _record(self, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Keeps the arguments of the first call; this is the hook."""
        kept = {name: value for name, value in keywords.items() if name not in self._without and value is not None}
        self.arguments, self.keywords = fitted(module, tuple(arguments)), fitted(module, kept)
        self._hook.remove()


def fitted(module: nn.Module, values: Any) -> Any:
    """Copies of all tensors in there without history, where the module is and in its type.

    Inside autocast a module may be handed 16-bit activations that it could not take outside.
    """
    weight = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), None)
    device, floating = (torch.device("cpu"), torch.float32) if weight is None else (weight.device, weight.dtype)

    def copied(value: Any) -> Any:
        """Returns a copy of one of the arguments."""
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(device, floating if value.is_floating_point() else value.dtype, copy=True)

    return tree_map(copied, values)

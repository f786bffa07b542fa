"""The inputs of a module's first forward call in a training loop, whatever the batches look like."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["FirstInputs"]


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
        """Stops waiting."""
        self._hook.remove()

    def _record(self, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """The hook."""
        # Inside autocast a module may be handed 16-bit activations that it could not take outside.
        dtype = next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), torch.float32)

        def outside(value: Any) -> Any:
            """A copy without history, in the module's type."""
            if not isinstance(value, Tensor):
                return value
            value = value.detach()
            return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()

        self.arguments = tree_map(outside, tuple(arguments))
        kept = {name: value for name, value in keywords.items() if name not in self._without and value is not None}
        self.keywords = tree_map(outside, kept)
        self._hook.remove()

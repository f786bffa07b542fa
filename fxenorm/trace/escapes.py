"""Values that leave the graph unseen: what a tracer cannot follow is made visible or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["ExportWatch", "RealRunWatch"]

_TO_PYTHON = {torch.Tensor.numpy: "numpy", torch.Tensor.__array__: "__array__", torch.Tensor.tolist: "tolist"}
_SHARES_MEMORY = {torch.Tensor.__dlpack__: "__dlpack__", torch.utils.dlpack.to_dlpack: "to_dlpack"}  # type: ignore[attr-defined]
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]


class ExportWatch(TorchFunctionMode):
    """For `torch.export`: ``.data``, which it cannot follow, becomes ``detach()``; sharing memory is refused.

    (A fake tensor has no memory: handing it out would crash the process.)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs `func`, or what stands for it."""
        if func == _DATA:
            return args[0].detach()
        if func in _SHARES_MEMORY:
            raise RuntimeError(f"{_SHARES_MEMORY[func]} takes a tensor out of the graph")
        return func(*args, **(kwargs or {}))


class RealRunWatch(TorchFunctionMode):
    """For a real run: a tensor that becomes a list or an array gets an ``item`` node, which says that Python saw it.

    Without it the values would come back as constants, and the graph would not show that they depend on anything.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs `func`, after marking the tensor that it takes out of the graph."""
        if func in _TO_PYTHON or func in _SHARES_MEMORY:
            args[0].detach().sum().item()
        return func(*args, **(kwargs or {}))

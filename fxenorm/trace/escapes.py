"""Values that leave the graph unseen: each is made visible in the graph, or refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
import torch._utils
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .hold import hold
from .releases import GROUPED_PRODUCTS, run_grouped_product, run_recorded

__all__ = ["ExportWatch", "RealRunWatch"]

_BY_VALUE = ("tolist", "__repr__", "__format__")
_BY_MEMORY = (
    "numpy", "__array__", "__dlpack__", "data_ptr", "const_data_ptr", "mutable_data_ptr", "untyped_storage", "storage",
    "_typed_storage", "share_memory_", "__reduce_ex__", "__reduce__", "apply_", "map_", "map2_", "_make_subclass",
)  # fmt: skip


def _named(names: Iterable[str]) -> dict[Any, str]:
    """Returns the methods of tensors that have these names, in this version of torch."""
    return {getattr(torch.Tensor, name): name for name in names if hasattr(torch.Tensor, name)}


_VALUES = _named(_BY_VALUE)
_MEMORY = {
    **_named(_BY_MEMORY),
    torch.utils.dlpack.to_dlpack: "to_dlpack",  # type: ignore[attr-defined]
    torch.Tensor.__cuda_array_interface__.__get__: "__cuda_array_interface__",
}
# Torch's own Python code asks for these to compare identities.
_ALSO_ASKED_BY_TORCH = {torch.Tensor.untyped_storage, torch.Tensor._typed_storage, torch.Tensor.data_ptr}
# Functions that look at an address to see how it is aligned, and compute the same either way: by module and name.
_ASK_FOR_ALIGNMENT = {("transformers.integrations.moe", "_can_use_grouped_mm")}
_READS = _named(("item", "tolist", "__repr__", "__format__", "__bool__", "__float__", "__int__", "__index__", "__complex__"))
_OWN_FOLDERS = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (torch._utils.__file__, os.path.dirname(__file__))
)
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_COPY = torch.Tensor.__deepcopy__
_COMPRESSED = frozenset({torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc})
"""Calls that make a sparse matrix in compressed rows or columns. `make_fx` records none; products with it are those of the same
matrix as a list of its entries."""

_WATCHED = frozenset({_DATA, _COPY, *_MEMORY, *_READS, *GROUPED_PRODUCTS})


def _taken(func: Callable[..., Any]) -> str | None:
    """Returns the name of `func` where it hands out a tensor's memory to code that may read or write it there."""
    name = _MEMORY.get(func)
    if name is None or func not in _ALSO_ASKED_BY_TORCH:
        return name
    frame = _caller(sys._getframe(2))
    return None if frame.f_code.co_filename.startswith(_OWN_FOLDERS) or _asks_for_alignment(func, frame) else name


def _caller(frame: FrameType) -> FrameType:
    """Returns the code that makes the call which `frame` hands on; modes of a tracer may hand it on too."""
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _asks_for_alignment(func: Callable[..., Any], frame: FrameType) -> bool:
    """Whether the code of `frame` asks by `func` for an address on which no result depends."""
    asking = (frame.f_globals.get("__name__"), frame.f_code.co_name)
    return func == torch.Tensor.data_ptr and asking in _ASK_FOR_ALIGNMENT


def _copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """Returns a deep copy by operators that a graph shows."""
    known = memo.get(id(tensor))
    if known is None:
        known = memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return known


class ExportWatch(TorchFunctionMode):
    """Watches runs with fake tensors: ``.data``, which `torch.export` cannot follow, becomes ``detach()``; memory is refused.

    (A fake tensor has no memory: whoever reads it by its address crashes the process.)

    Attributes:
        read: copies of the tensors whose values Python read, whatever it did with them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs `func`, or its stand-in where no graph can show it."""
        if torch.compiler.is_dynamo_compiling():  # in the body of a loop: Dynamo refuses what leaves it, and cannot follow us
            return func(*args, **(kwargs or {}))
        if func not in _WATCHED:  # nearly always
            return run_recorded(func, args, kwargs) if kwargs else func(*args)
        if func == _DATA:
            return args[0].detach()
        if func == _COPY:
            return _copied(*args)
        if func in GROUPED_PRODUCTS:
            return run_grouped_product(func, args, kwargs or {})
        name = _taken(func)
        if name is not None:
            raise RuntimeError(f"{name} takes a tensor out of the graph")
        if _asks_for_alignment(func, _caller(sys._getframe(1))):
            return 0  # what has no memory is aligned for everything
        if func in _READS:
            self.read.append(args[0].detach().clone())
        return func(*args, **(kwargs or {}))


class RealRunWatch(TorchFunctionMode):
    """Watches a real run: a tensor whose values or memory leave the graph is held from there on, and the graph says so.

    Without it the values would come back as constants, or change where no operator writes.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs `func`, after marking the tensors that it takes out of the graph."""
        if func == _COPY:
            return _copied(*args)
        if func in _COMPRESSED:
            return args[0].to_sparse()
        if func in _VALUES:
            args[0].detach().sum().item()
        name = _taken(func)
        if name is not None:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    hold(tensor, f"{name} hands out its memory")
        return run_recorded(func, args, kwargs or {})

"""Runs of a model that see every linear layer and convolution at its operator, to observe its input or to round it.

Operators are met before torch takes them apart, so that functional calls (``F.linear``, ``x @ weight``) count as layers do.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..bits import Bits
from ..trace.names import storage_id
from .rounding import ActivationRange, rounded_weight

__all__ = ["Ranges", "RoundedRun"]

Ranges = dict[tuple[str, int], ActivationRange]
"""The range of the input of a layer, by the layer's name and the number of its call in one forward pass."""


class _Operands(NamedTuple):
    """Where an operator has its activation and its weight, and which axes of the weight are those of the channels."""

    activation: int
    weight: int
    output: int
    input: int
    is_layer: bool = True
    """Whether its weight is one whatever it was made from; else only where it is a parameter."""


_LINEAR = _Operands(0, 1, 0, 1)
_TABLE: dict[str, tuple[_Operands, ...]] = {
    "linear": (_LINEAR,),
    **{f"conv{n}d": (_LINEAR,) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (_Operands(0, 1, 1, 0),) for n in (1, 2, 3)},
    **{
        name: (_Operands(first, first + 1, -1, -2, False), _Operands(first + 1, first, -2, -1, False))
        for name, first in (("matmul", 0), ("mm", 0), ("bmm", 0), ("addmm", 1), ("baddbmm", 1))
    },
    "_grouped_mm": (_Operands(0, 1, -1, -2, False),),
}
_GROUPS_OF_TRANSPOSED = 6
_TAKEN_APART = ("einsum",)
_SELECTIONS = ("index", "index_select", "clone", "contiguous", "to", "_to_copy")
"""Operators whose result is a weight where their first operand is: the experts of some tokens, a copy in another type."""


class RoundedRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the layers of a model while it runs inside ``with run.on(model):``, and rounds their weights and inputs.

    Without bits it rounds nothing and notes the ranges of the inputs. An input that has no range yet is rounded by its own.

    Args:
        bits: of the quantiser; None: ranges are noted.
        ranges: those of the inputs.

    Attributes:
        ranges: those that were given or noted.
        layers: the names of the layers that were met, in their order.
    """

    def __init__(self, bits: Bits | None = None, ranges: Ranges | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ranges: Ranges = {} if ranges is None else ranges
        self.layers: dict[str, None] = {}
        self._bits = bits
        self._calls: Counter[str] = Counter()
        self._running: list[str] = []
        self._owners: dict[int, list[str]] = {}

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Sees one forward pass; the hooks are off afterwards, whatever happens."""
        self._calls.clear()
        self._running.clear()
        self._owners.clear()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner = name.rpartition(".")[0].partition(".parametrizations.")[0]
            self._owners.setdefault(storage_id(parameter), []).append(owner)
        self._owners.pop(0, None)
        handles: list[Any] = []
        try:
            for path, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(_entering(self._running, path)))
                handles.append(module.register_forward_hook(_leaving(self._running), always_call=True))
            # Below autograd, operators that are made of others arrive whole.
            with torch._C._AutoDispatchBelowAutograd(), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Exchanges the operands of a layer for rounded ones."""
        name = getattr(getattr(func, "overloadpacket", None), "__name__", "")
        kwargs = kwargs or {}
        if name in _TAKEN_APART:
            with self:
                return func.decompose(*args, **kwargs)
        for operands in _TABLE.get(name, ()):
            layer = self._layer_of(args, operands)
            if layer is not None:
                return func(*self._seen(layer, args, operands), **kwargs)
        output = func(*args, **kwargs)
        if name in _SELECTIONS and args and isinstance(args[0], Tensor):
            self._follow(args[0], output)
        return output

    def _follow(self, weight: Tensor, copy: Tensor) -> None:
        """Notes that a tensor is made of entries of a parameter, while it lives."""
        owners, place = self._owners.get(storage_id(weight)), storage_id(copy)
        if owners and place and place not in self._owners:
            self._owners[place] = owners
            weakref.finalize(copy, self._owners.pop, place, None)

    def _layer_of(self, args: tuple[Any, ...], operands: _Operands) -> str | None:
        """Returns the name of the layer whose weight an operand is; None: it is none."""
        if len(args) <= max(operands[:2]):
            return None
        activation, weight = args[operands.activation], args[operands.weight]
        if not all(isinstance(one, Tensor) and one.is_floating_point() and one.numel() for one in (activation, weight)):
            return None
        owners = self._owners.get(storage_id(weight), [])
        if weight.ndim < 2 or not (owners or operands.is_layer):
            return None
        here = self._running[-1] if self._running else ""
        return here if here in owners or not owners else owners[0]

    def _seen(self, layer: str, args: tuple[Any, ...], operands: _Operands) -> tuple[Any, ...]:
        """Returns the arguments of a layer, rounded where there are bits for it."""
        self.layers[layer] = None
        place = (layer, self._calls[layer])
        self._calls[layer] += 1
        activation, weight = args[operands.activation], args[operands.weight]
        if self._bits is None:
            found = ActivationRange.of(activation)
            self.ranges[place].add(found) if place in self.ranges else self.ranges.update({place: found})
            return args
        bits = self._bits.of(layer)
        if bits is None:
            return args
        groups = args[_GROUPS_OF_TRANSPOSED] if operands.output == 1 and len(args) > _GROUPS_OF_TRANSPOSED else 1
        replaced = list(args)
        replaced[operands.activation] = self.ranges.get(place, ActivationRange.of(activation)).rounded(activation, bits)
        replaced[operands.weight] = _rounded_matrices(weight, bits, operands, groups)
        return tuple(replaced)


def _rounded_matrices(weight: Tensor, bits: Bits, operands: _Operands, groups: int) -> Tensor:
    """Returns a rounded weight; of a stack of matrices each for itself."""
    stack = weight[None] if operands.is_layer or weight.ndim == 2 else weight.flatten(0, -3)
    axes = (operands.output, operands.input) if operands.is_layer else (operands.output % 2, operands.input % 2)
    return rounded_weight(stack, bits, *axes, groups).reshape(weight.shape)


def _entering(running: list[str], path: str) -> Callable[..., None]:
    """Returns the hook that notes which module runs."""

    def hook(module: nn.Module, args: Any) -> None:
        running.append(path)

    return hook


def _leaving(running: list[str]) -> Callable[..., None]:
    """Returns the hook that notes that the last module has ended."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    return hook

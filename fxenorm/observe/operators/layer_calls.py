"""Runs of a model that see every linear layer, convolution and product with a weight at its operator.

Operators are met before torch takes them apart and before derivatives are recorded, so that functional calls (``F.linear``,
``x @ weight``) are seen as layers are, whatever C++ or Python function makes them.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...rules.weight_reads import COPIES, READERS, TAKEN_APART, Operands, factors, operands_of, with_factors
from ...trace.layers import LayerNames
from ...trace.names import storage_id, tied_names

__all__ = ["LayerCall", "LayerCalls"]

_KEYS = torch._C.DispatchKey
_DERIVATIVES = torch._C.DispatchKeySet(_KEYS.ADInplaceOrView)
for _key in (_KEYS.AutogradFunctionality, _KEYS.AutogradOther, _KEYS.AutogradNestedTensor):
    _DERIVATIVES = _DERIVATIVES | torch._C.DispatchKeySet(_key)

_GROUPS, _GROUPS_LAST = 6, 8
"""The place of the number of groups among the arguments of conv2d and conv_transpose2d, and of convolution."""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One operator that multiplies an activation by a weight.

    Attributes:
        layer: path of the layer whose weight it is; of another parameter, its name; of a computed weight, the module that runs.
        parameter: name of the parameter that the weight shows; "" where it is computed.
        called: whether the layer's module itself runs.
        part: the place in the parameter of the first entry that is read.
        activation, weight: the operands.
        operands: where they stand, and their axes.
        operator: its name, as "linear".
        arguments: all of the operator's.
    """

    layer: str
    parameter: str
    called: bool
    part: int
    activation: Tensor
    weight: Tensor
    operands: Operands
    operator: str
    arguments: tuple[Any, ...]

    @property
    def groups(self) -> int:
        """The groups of a convolution; 1 of all else."""
        if "conv" not in self.operator:
            return 1
        place = _GROUPS_LAST if "convolution" in self.operator else _GROUPS
        return int(self.arguments[place]) if place < len(self.arguments) else 1


class LayerCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the layers of a model while it runs inside ``with calls.on(model):``, and hands each call to `met`.

    Args:
        whole: whether an einsum is met as one operator; else as the matrix product that it is made of.
    """

    supports_higher_order_operators = True

    def __init__(self, whole: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = whole
        self._running: list[str] = []
        self._calls: Counter[str] = Counter()
        # By memory: the first entry of a parameter or of a copy, the one after its last, its name, and its place in it.
        self._shown: dict[int, list[tuple[int, float, str, int]]] = {}
        self._aliases: dict[str, str] = {}
        self._names: LayerNames | None = None

    def met(self, call: LayerCall) -> tuple[Tensor, Tensor] | None:
        """Takes in a call; returns the activation and the weight that stand in for its own, None: these."""
        raise NotImplementedError

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Sees one forward pass; hooks and mode are off afterwards, whatever happens."""
        self._running.clear()
        self._calls.clear()
        self._aliases = tied_names(model)
        self._names = LayerNames(model, self._aliases)
        handles: list[Any] = []
        try:
            for path, module in model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):  # these call no hooks
                    handles.append(module.register_forward_pre_hook(self._entering(path)))
                    handles.append(module.register_forward_hook(_leaving(self._running), always_call=True))
            if isinstance(model, torch.jit.ScriptModule):
                self._look(model)
                self._running.append("")
            with torch._C._ExcludeDispatchKeyGuard(_DERIVATIVES), self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._shown.clear()

    def _number(self, name: str) -> int:
        """Returns how many calls of this name there were before in this pass, and counts one more."""
        number = self._calls[name]
        self._calls[name] += 1
        return number

    def _entering(self, path: str) -> Callable[..., None]:
        """Returns the hook that notes which module runs, and at the first which parameters it has meanwhile."""

        def hook(module: nn.Module, args: Any) -> None:
            if not self._running:
                self._look(module)
            self._running.append(path)

        return hook

    def _look(self, model: nn.Module) -> None:
        """Notes where the parameters lie."""
        self._shown.clear()
        for name, tensor in model.named_parameters():
            start = int(tensor.storage_offset()) if storage_id(tensor) else 0
            span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            shown = self._shown.setdefault(storage_id(tensor), [])
            shown.append((start, start + span, self._aliases.get(name, name), 0))
        self._shown.pop(0, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Meets the operators that read a weight; all others run as ever."""
        name = getattr(getattr(func, "overloadpacket", None), "__name__", "")
        if name == TAKEN_APART and not self._whole:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        with torch._C._ForceDispatchKeyGuard(included, excluded - _DERIVATIVES):
            return self._run(func, name, args, kwargs or {})

    def _run(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the result of one operator."""
        if name in READERS and self._running:
            args = self._with_met(name, args)
        output = func(*args, **kwargs)
        if name in COPIES and args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self._follow(args[0], output)
        return output

    def _with_met(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the arguments of an operator, with others in the place of the operands where `met` gives some."""
        given = factors(name, args)
        for operands in operands_of(name, args):
            call = self._call(given, operands, name, args)
            others = None if call is None else self.met(call)
            if others is not None:
                changed = list(given)
                changed[operands.activation], changed[operands.weight] = others
                return with_factors(name, args, changed)
            if call is not None:
                break
        return args

    def _call(self, given: Sequence[Any], operands: Operands, name: str, args: tuple[Any, ...]) -> LayerCall | None:
        """Returns the call of a layer that an operator is with these operands; None: it is none."""
        activation, weight = given[operands.activation], given[operands.weight]
        if not activation.numel() or not weight.numel() or self._names is None:
            return None
        shown, running = self._of(weight), self._running[-1]
        if shown is None:
            found = (running, "", False, 0) if operands.is_layer else None
        elif self._of(activation) is not None:
            found = None
        else:
            parameter, part = shown
            called = self._names.calls(running, parameter)
            found = (running if called else self._names.of(parameter), parameter, called, part)
        return None if found is None else LayerCall(*found, activation, weight, operands, name, args)

    def _of(self, tensor: Tensor) -> tuple[str, int] | None:
        """Returns the parameter of which a tensor shows entries, and where in it these begin."""
        for start, stop, name, place in self._shown.get(storage_id(tensor), ()):
            if start <= tensor.storage_offset() < stop:
                return name, int(tensor.storage_offset()) - start + place
        return None

    def _follow(self, weight: Tensor, copy: Tensor) -> None:
        """Notes that a tensor is made of entries of a parameter, while it lives."""
        shown, place = self._of(weight), storage_id(copy)
        if shown is not None and place and place not in self._shown:
            self._shown[place] = [(0, math.inf, *shown)]
            weakref.finalize(copy, self._shown.pop, place, None)


def _leaving(running: list[str]) -> Callable[..., None]:
    """Returns the hook that notes that the last module has ended."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if running:
            running.pop()

    return hook

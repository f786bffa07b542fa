"""Integer and boolean tensors that depend on no model input, evaluated for real, so that constant gathers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ...field import compress
from ...field.overlay import OPEN, SETTLED
from ...rules import is_floating
from ...trace.traced_model import TracedModel
from .arguments import bound_arguments, operator_name
from .storage import Storage, written_arguments

__all__ = ["KnownValues", "known_zeros"]

_FILLED = {"aten::ones_like": 1, "aten::new_ones": 1, "aten::full_like": None, "aten::new_full": None}
"""Operators that read the shape of a tensor and fill another, and with which number."""

LARGEST = 10_000_000
"""Constants with more entries than this are not evaluated: 10 million int64 are 80 MB, and an analysis must stay far below the
size of the weights."""


LARGEST_PATTERN = 65_536
"""Zeros are looked for in constants of up to this many entries, each of which may get a variable: 64 Ki ids are half a MiB."""


class KnownValues:
    """Evaluates nodes on demand and remembers the answers."""

    def __init__(self, traced: TracedModel, storage: Storage) -> None:
        self._placeholders = traced.placeholders
        self._storage = storage
        self._values: dict[fx.Node, Any] = {}
        self._writes = {node for node in traced.graph.nodes if _mutates(node)}

    def value(self, node: fx.Node) -> torch.Tensor | None:
        """Returns the integer or boolean tensor of `node`, None where it is not known."""
        found = self.anything(node)
        if not isinstance(found, torch.Tensor) or found.is_floating_point() or found.is_complex():
            return None
        return found

    def anything(self, node: fx.Node) -> Any:
        """Returns the value of a node, floating-point tensors and lists among them; None where it is not known."""
        return self._evaluate(node)

    def number(self, node: fx.Node) -> float | None:
        """Returns the number that every entry of the node's tensor is, None where it is not known or not one number."""
        found = self._evaluate(node)
        if found is None:
            return self._filled(node)
        if not isinstance(found, torch.Tensor) or found.is_complex() or found.layout is not torch.strided or not found.numel():
            return None
        first = found.reshape(-1)[0]
        return float(first) if bool((found == first).all()) else None

    def _filled(self, node: fx.Node) -> float | None:
        """Returns the number that a new tensor is filled with, whose shape alone is that of a tensor which is not known."""
        name = operator_name(node)
        if name not in _FILLED or any(member in self._writes for member in self._storage.members(node)):
            return None
        value = bound_arguments(node).get("fill_value", _FILLED[name])
        return float(value) if isinstance(value, (int, float)) else None

    def _evaluate(self, node: fx.Node) -> Any:
        # Iterative, as chains of constants can be longer than Python's stack.
        stack = [node]
        while stack:
            current = stack[-1]
            if current in self._values:
                stack.pop()
                continue
            waiting = [source for source in current.all_input_nodes if source not in self._values]
            if waiting and self._evaluable(current):
                stack += waiting
                continue
            self._values[current] = self._compute(current) if self._evaluable(current) else None
            stack.pop()
        return self._values[node]

    def _evaluable(self, node: fx.Node) -> bool:
        """Whether the node is free of randomness, of writes and of anything that is not an operator or a known constant."""
        if node.op in ("placeholder", "get_attr"):
            return True
        if node.op != "call_function" or node in self._writes:
            return False
        if isinstance(node.target, torch._ops.OpOverload):
            if torch.Tag.nondeterministic_seeded in node.target.tags:
                return False
            value = node.meta.get("val")
            # A size that is open in the trace follows from the arguments, which are small enough.
            return not isinstance(value, torch.Tensor) or is_symbolic_shape(value) or value.numel() <= LARGEST
        return getattr(node.target, "__module__", "") in ("_operator", "operator", "math")

    def _compute(self, node: fx.Node) -> Any:
        if any(member in self._writes for member in self._storage.members(node)):
            return None
        if node.op in ("placeholder", "get_attr"):
            known = self._placeholders.get(node.name)
            if known is None or known.kind not in ("buffer", "constant", "state") or known.value is None or known.value.is_meta:
                return None
            # Floating-point buffers and attributes may be filled later; only integers are part of the architecture.
            if known.kind in ("buffer", "state") and known.value.is_floating_point():
                return None
            return known.value.detach().cpu()
        if any(self._values.get(source) is None for source in node.all_input_nodes):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: self._values[source])
        # Everything known was brought to the CPU above.
        args = tuple(torch.device("cpu") if isinstance(value, torch.device) else value for value in args)
        kwargs = {key: torch.device("cpu") if isinstance(value, torch.device) else value for key, value in kwargs.items()}
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def is_symbolic_shape(value: torch.Tensor) -> bool:
    """Whether a size is known at run time only."""
    return any(not isinstance(size, int) for size in value.shape)


def _mutates(node: fx.Node) -> bool:
    """Whether the node writes to one of its arguments."""
    return node.op == "call_function" and bool(written_arguments(node))


def known_zeros(known: KnownValues, node: fx.Node, shape: tuple[int, ...]) -> NDArray[np.int8] | None:
    """Tells of each entry of a floating-point constant whether it is 0 or infinite, as states of a patchwork.

    Returns:
        states of size 1 on axes along which they are constant; None where no entry is, or the values are not known.
    """
    if not is_floating(node.meta.get("val")) or math.prod(shape) > LARGEST_PATTERN:
        return None
    value = known.anything(node)
    if not is_floating(value) or tuple(value.shape) != shape or value.layout is not torch.strided:
        return None
    zero = ((value == 0) | torch.isinf(value)).numpy()
    return compress(np.where(zero, OPEN, SETTLED)).astype(np.int8) if zero.any() else None

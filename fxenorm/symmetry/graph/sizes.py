"""Integers in place of sizes that depend on the data, so that the rules can run on shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx

from .arguments import bound_arguments, flat, operator_name
from .known_values import KnownValues

__all__ = ["Sizes", "is_symbolic"]

FIRST = 1009
"""Sizes that are not known become primes from here on, 1009 being the first above 1000: distinct, no size that a model is
likely to have, and no product of two of them is another."""


_WHOLE = frozenset({int})


def is_symbolic(value: Any) -> bool:
    """Whether a tensor, a number, or one in a list, has a size or value that is known at run time only."""
    if isinstance(value, torch.Tensor):
        return not _WHOLE.issuperset(map(type, value.shape))
    return isinstance(value, torch.SymInt) or (isinstance(value, (list, tuple)) and any(map(is_symbolic, flat(value))))


class Sizes:
    """The integers that stand for the sizes which a trace left open.

    A size that follows from tensors whose values are known (a constant mask) is that size; others get a prime of their own.
    """

    def __init__(self, known: KnownValues) -> None:
        self._known = known
        self._numbers: dict[Any, int] = {}
        self._open: set[Any] = set()
        self._primes = _primes()
        self._fakes: dict[fx.Node, Any] = {}
        self._symbolic: dict[fx.Node, bool] = {}

    def of(self, node: fx.Node) -> Any:
        """Returns the fake value of a node with integers for all sizes."""
        if node not in self._fakes:
            value = node.meta.get("val")
            if self.is_open(node):
                self._learn(node, value)
                value = self._closed(value)
            self._fakes[node] = value
        return self._fakes[node]

    def is_open(self, node: fx.Node) -> bool:
        """Whether the trace left a size or the value of the node open."""
        if node not in self._symbolic:
            self._symbolic[node] = is_symbolic(node.meta.get("val"))
        return self._symbolic[node]

    def unknown(self, node: fx.Node) -> bool:
        """Whether the node is a number that depends on the data."""
        if not self.is_open(node):
            return False
        value = node.meta.get("val")
        return isinstance(value, torch.SymInt) and self._depends(value)

    def unknown_axes(self, value: Any) -> list[int]:
        """Returns the axes of a fake tensor whose size depends on the data."""
        return [axis for axis, size in enumerate(getattr(value, "shape", ())) if self._depends(size)]

    def _depends(self, size: Any) -> bool:
        if isinstance(size, int):
            return False
        self.number(size)
        return any(symbol in self._open for symbol in _symbols(size))

    def number(self, size: Any) -> int:
        """Returns the integer that stands for a size."""
        if isinstance(size, int):
            return size
        for symbol in _symbols(size):
            if symbol not in self._numbers:
                self._numbers[symbol] = next(self._primes)
                self._open.add(symbol)
        return int(size.node.expr.subs({symbol: self._numbers[symbol] for symbol in _symbols(size)}))

    def _closed(self, value: Any) -> Any:
        """Returns the value with integers for sizes."""
        if isinstance(value, (list, tuple)):
            return [self._closed(item) for item in value]
        if isinstance(value, torch.SymInt):
            return self.number(value)
        if isinstance(value, torch.Tensor) and is_symbolic(value):
            shape = [self.number(size) for size in value.shape]
            repeats = [not is_symbolic_step(step) and step == 0 for step in value.stride()]
            small = [1 if again else size for size, again in zip(shape, repeats, strict=True)]
            return torch.empty(small, dtype=value.dtype, device="meta").expand(shape)
        return value

    def _learn(self, node: fx.Node, value: Any) -> None:
        """Notes the sizes of a node that follow from known values."""
        real = self._real_shapes(node)
        if real is None:
            return
        tensors = [item for item in flat(value) if isinstance(item, torch.Tensor)]
        for fake, shape in zip(tensors, real, strict=False):
            for size, number in zip(fake.shape, shape, strict=True):
                if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                    self._numbers.setdefault(size.node.expr, number)

    def _real_shapes(self, node: fx.Node) -> list[tuple[int, ...]] | None:
        """Returns the true shapes of a node's tensors, where they follow from known values."""
        found = self._known.anything(node)
        if found is not None:
            return [tuple(item.shape) for item in flat(found) if isinstance(item, torch.Tensor)]
        bound = bound_arguments(node) if operator_name(node) in ("aten::index", "aten::masked_select") else {}
        names = [*bound.get("indices", ()), bound.get("mask")]
        known = [self._known.value(mask) for mask in names if isinstance(mask, fx.Node)]
        if not known or any(value is None for value in known):
            return None
        fake = node.meta["val"]
        if "mask" in bound:
            whole = np.broadcast_shapes(tuple(known[0].shape), tuple(self.of(bound["self"]).shape))  # type: ignore[union-attr]
            return [(int(known[0].expand(whole).count_nonzero()),)]  # type: ignore[union-attr]
        counts = [int(value.count_nonzero()) for value in known if value is not None and value.dtype in (torch.bool, torch.uint8)]
        return [tuple(size if isinstance(size, int) else counts[0] for size in fake.shape)] if counts else None


def is_symbolic_step(step: Any) -> bool:
    """Whether a stride is known at run time only."""
    return not isinstance(step, int)


def _symbols(size: Any) -> Any:
    """Returns the symbols in an open size."""
    return size.node.expr.free_symbols


def _primes() -> Iterator[int]:
    """Yields the primes from `FIRST` on, in ascending order."""
    number = FIRST
    while True:
        if all(number % k for k in range(2, int(number**0.5) + 1)):
            yield number
        number += 2

"""The axes of the example inputs that could have another size, read off the first operators that meet them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .traced_model import TracedModel

__all__ = ["Axis", "AxisFacts", "axis_facts", "free_classes"]

Axis = tuple[int, int]
"""(position among the input tensors, axis)."""

Labels = tuple[Axis | None, ...]

_LAYERS = {f"{kind}{rank}d": rank for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)}
"""By operator, the number of axes that it moves along: torch has convolutions of 1, 2 and 3."""

_CHANNEL_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "native_batch_norm", "native_group_norm"})
_LAST_NORMS = frozenset({"layer_norm", "rms_norm", "native_layer_norm"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_SELECTING = frozenset({"slice", "index", "select", "embedding"})
_PRODUCTS = frozenset({"matmul", "mm", "bmm"})


@dataclass
class AxisFacts:
    """The facts that a graph shows about the axes of its inputs.

    Attributes:
        fixed: axes whose size a parameter, a buffer or a constant sets.
        spatial: axes that a convolution moves along.
        moved: axes of size 1 along which an operator moves: they are lengths, not places to broadcast along.
        same: pairs of axes that an operator joins.
    """

    fixed: set[Axis] = field(default_factory=set)
    spatial: set[Axis] = field(default_factory=set)
    moved: set[Axis] = field(default_factory=set)
    same: list[tuple[Axis, Axis]] = field(default_factory=list)


def axis_facts(traced: TracedModel, tensors: Sequence[torch.Tensor]) -> AxisFacts:
    """Follows the axes of the input tensors through the graph as far as they stay whole."""
    nodes = [node for node in traced.graph.nodes if node.op == "placeholder" and _is_input(traced, node)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if [_shape(node) for node in nodes] != shapes:
        return AxisFacts()  # inputs that the tracer took apart in a way of its own
    search = _Search(traced)
    for position, node in enumerate(nodes):
        search.labels[node] = tuple((position, axis) for axis in range(len(shapes[position])))
    for node in traced.graph.nodes:
        if node.op == "call_function":
            search.visit(node)
    return search.facts


def _is_input(traced: TracedModel, node: fx.Node) -> bool:
    """Whether a placeholder is a tensor of the example inputs."""
    known = traced.placeholders.get(node.name)
    return (known is None or known.kind == "input") and isinstance(node.meta.get("val"), torch.Tensor)


def _shape(node: Any) -> tuple[Any, ...]:
    """Returns the shape of a node's tensor, () for other values; a size that depends on the data gets a negative number."""
    shape = getattr(node.meta.get("val"), "shape", ()) if isinstance(node, fx.Node) else ()
    return tuple(size if isinstance(size, int) else -2 - abs(hash(str(size))) for size in shape)


class _Search:
    """The walk of `axis_facts` through one graph, node by node."""

    def __init__(self, traced: TracedModel) -> None:
        self.facts = AxisFacts()
        self.labels: dict[fx.Node, Labels] = {}
        # Parameters, buffers and constants, and tensors made of them with their size unchanged.
        self.sized: set[fx.Node] = {
            node for node in traced.graph.nodes if node.op in ("placeholder", "get_attr") and not _is_input(traced, node)
        }

    def visit(self, node: fx.Node) -> None:
        """Labels the axes of a node's tensor with the input axes that they are, and notes facts."""
        name = str(getattr(node.target, "__name__", "")).split(".")[0].removesuffix("_")
        sources = node.all_input_nodes
        if not any(source in self.labels for source in sources):
            if (
                sources
                and all(source in self.sized for source in sources)
                and name not in ("slice", "index", "select", "embedding")
            ):
                self.sized.add(node)
            return
        found = self._layer(name, node) if name != "where" else None
        if found is None:
            found = self._moved(name, node)
        if found is None:
            found = self._elementwise(node)
        if len(found) == len(_shape(node)) and any(found):
            self.labels[node] = found

    def _of(self, value: Any) -> Labels:
        """Labels of an argument, all None where it has none."""
        return self.labels.get(value) or (None,) * len(_shape(value)) if isinstance(value, fx.Node) else ()

    def _fix(self, labels: Sequence[Axis | None]) -> None:
        self.facts.fixed.update(label for label in labels if label is not None)

    def _join(self, first: Axis | None, second: Axis | None) -> None:
        if first is not None and second is not None and first != second:
            self.facts.same.append((first, second))

    def _layer(self, name: str, node: fx.Node) -> Labels | None:
        """Operators with parameters of their own, and products."""
        args: Any = node.args
        labels = [self._of(value) for value in args]
        if name in _LAYERS or name == "convolution":
            rank = len(_shape(args[1])) - 2
            x = labels[0]
            self._fix(x[-rank - 1 : -rank])
            self.facts.spatial.update(label for label in x[-rank:] if label is not None)
            return (*x[: -rank - 1], *(None,) * (rank + 1))
        if name == "linear":
            self._fix(labels[0][-1:])
            return (*labels[0][:-1], None)
        if name == "embedding":
            return (*labels[1], None)
        if name in _CHANNEL_NORMS:
            self._fix(labels[0][1:2])
            return labels[0]
        if name in _LAST_NORMS:
            self._fix(labels[0][-len(args[1]) :])
            return labels[0]
        if name in _RECURRENT:
            self._fix(labels[0][-1:])
            return ()
        if name in _PRODUCTS:
            return self._product(node, labels[0], labels[1])
        return None

    def _product(self, node: fx.Node, left: Labels, right: Labels) -> Labels:
        """Labels a matrix product: the axes in the middle are one."""
        args: Any = node.args
        inner = right[-2] if len(right) > 1 else right[-1]
        self._join(left[-1], inner)
        if args[1] in self.sized:
            self._fix(left[-1:])
        if args[0] in self.sized:
            self._fix((inner,))
        self.facts.moved.update(label for label in (*left[-2:-1], *right[-1:]) if label is not None)
        rank = len(_shape(node))
        if len(left) == rank and len(right) in (2, rank):
            return (*left[:-1], right[-1])
        if len(left) == 2 and len(right) == rank:
            return (*right[:-2], left[0], right[-1])
        return ()

    def _moved(self, name: str, node: fx.Node) -> Labels | None:
        """Operators that rearrange axes; () where they are lost."""
        args: Any = node.args
        x = self._of(args[0]) if args else ()
        shape = _shape(node)
        if name in ("permute", "transpose", "t", "mT", "numpy_T", "swapaxes", "movedim"):
            return self._permuted(name, node, x)
        if name == "unsqueeze":
            axis = args[1] % (len(x) + 1)
            return (*x[:axis], None, *x[axis:])
        if name == "unbind":
            self._fix(x[args[1] % len(x) :][:1] if len(args) > 1 else x[:1])
            return ()
        if name in ("view", "reshape", "flatten", "unflatten", "squeeze", "select", "expand", "_unsafe_view", "mean", "sum"):
            return _kept(x, _shape(args[0]), shape)
        if name in ("cat", "stack", "concat"):
            return self._joined(node, shape)
        return None

    def _permuted(self, name: str, node: fx.Node, x: Labels) -> Labels:
        """Returns the labels in their new order."""
        args: Any = node.args
        if name == "permute":
            return tuple(x[axis] for axis in args[1])
        first, second = args[1:3] if len(args) > 2 else (-1, -2)
        if len(x) < 2 or not isinstance(first, int) or not isinstance(second, int):
            return ()
        order = list(x)
        order[first], order[second] = order[second], order[first]
        return tuple(order)

    def _joined(self, node: fx.Node, shape: tuple[Any, ...]) -> Labels:
        """Tensors side by side: each axis keeps the label that any of them has, but for the one along which they lie."""
        args: Any = node.args
        parts = [self._of(part) for part in args[0] if isinstance(part, fx.Node)]
        known = [part for part in parts if any(part)]
        if not known or len(known[0]) != len(shape):
            return ()
        axis = (args[1] if len(args) > 1 else 0) % len(shape)
        for part in known[1:]:
            for place, (first, second) in enumerate(zip(known[0], part, strict=False)):
                if place != axis:
                    self._join(first, second)
        return tuple(None if place == axis else label for place, label in enumerate(known[0]))

    def _elementwise(self, node: fx.Node) -> Labels:
        """Labels the axes of an operator that keeps the shape of its operands, broadcast against each other."""
        shape = _shape(node)
        found: list[Axis | None] = [None] * len(shape)
        sized = [False] * len(shape)
        for source in node.all_input_nodes:
            size = _shape(source)
            if len(size) > len(shape) or any(a not in (1, b) for a, b in zip(size[::-1], shape[::-1], strict=False)):
                return ()
            for back, length in enumerate(size[::-1], start=1):
                label = self._of(source)[-back]
                if length == shape[-back] and label is not None:
                    self._join(found[-back], label)
                    found[-back] = found[-back] or label
                elif length > 1 and source in self.sized:
                    sized[-back] = True
        self._fix([label for label, fixed in zip(found, sized, strict=True) if fixed])
        return tuple(found)


def _kept(labels: Labels, before: tuple[Any, ...], after: tuple[Any, ...]) -> Labels:
    """Labels of the leading and trailing axes that a reshape leaves as they are."""
    found: list[Axis | None] = [None] * len(after)
    for step in (1, -1):
        for old, new in zip(range(len(before))[::step], range(len(after))[::step], strict=False):
            if before[old] != after[new]:
                break
            found[new] = labels[old]
    return tuple(found)


def free_classes(facts: AxisFacts, tensors: Sequence[torch.Tensor]) -> list[list[Axis]]:
    """Returns the axes that may change, those that must change together in one list; the batch first.

    Axes of equal size in several inputs are taken for one axis, unless the inputs have these axes at the same places: then
    each place (height, width) is one.
    """
    axes = [(position, axis) for position, tensor in enumerate(tensors) for axis in range(tensor.dim()) if tensor.shape[axis]]
    parent = {axis: axis for axis in axes}

    def root(axis: Axis) -> Axis:
        while parent[axis] != axis:
            axis = parent[axis]
        return axis

    def join(first: Axis, second: Axis) -> None:
        if _size(tensors, first) == _size(tensors, second):
            parent[root(second)] = root(first)

    for first, second in facts.same:
        join(first, second)
    open_axes = [axis for axis in axes if not any(root(axis) == root(other) for other in facts.fixed if other in parent)]
    batch = next((axis for axis in open_axes if axis[1] == 0 and tensors[axis[0]].dim() > 1), None)
    if batch is not None:
        for axis in open_axes:
            if axis[1] == 0:
                join(batch, axis)
    rest = [axis for axis in open_axes if batch is None or root(axis) != root(batch)]
    for first, second in _same_sizes(rest, facts, tensors):
        join(first, second)
    classes: dict[Axis, list[Axis]] = {}
    met = facts.spatial.union(facts.moved, *facts.same)
    for axis in sorted(open_axes, key=lambda axis: batch is None or root(axis) != root(batch)):
        # An axis of size 1 is a place to broadcast along, unless an operator shows its use or it is all there is.
        if _size(tensors, axis) > 1 or axis in met or len(tensors) == 1 or (batch and root(axis) == root(batch)):
            classes.setdefault(root(axis), []).append(axis)
    return list(classes.values())


def _size(tensors: Sequence[torch.Tensor], axis: Axis) -> int:
    """Returns the number of positions along an axis of an input tensor."""
    return int(tensors[axis[0]].shape[axis[1]])


def _same_sizes(axes: Sequence[Axis], facts: AxisFacts, tensors: Sequence[torch.Tensor]) -> Iterator[tuple[Axis, Axis]]:
    """Pairs of axes that have one size in several inputs."""
    groups: dict[tuple[int, bool], list[Axis]] = {}
    for axis in axes:
        if _size(tensors, axis) > 1:
            groups.setdefault((_size(tensors, axis), axis in facts.spatial), []).append(axis)
    for members in groups.values():
        places: dict[int, list[int]] = {}
        for position, place in members:
            places.setdefault(position, []).append(place - tensors[position].dim())
        if len(places) < 2:
            continue
        alike = len({tuple(found) for found in places.values()}) == 1
        for first in members:
            for second in members:
                same_place = first[1] - tensors[first[0]].dim() == second[1] - tensors[second[0]].dim()
                if first < second and (same_place or not alike):
                    yield first, second

"""Blocks of memory that several tensors of a graph share: a write through one of them is read through the others.

A block is one tensor, its base; the others are views, each made from another by an operator that moves entries. The base has a
field that changes with every write; the field of a view is what its operators make of the base's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from ...field import AnyField, Ids, ScaleField
from ...field.overlay import GARBAGE, SETTLED, Patchwork, Place, block_of
from .arguments import flat, operator_name, replaced
from .sizes import Sizes
from .storage import Storage, may_return_input

__all__ = ["Block", "Memory", "numbered", "placed", "places_of"]

_WITHOUT_VALUES = frozenset(
    {
        "aten::empty",
        "aten::empty_like",
        "aten::new_empty",
        "aten::empty_strided",
        "aten::new_empty_strided",
        "aten::empty_permuted",
    }
)
LARGEST = 65_536
"""Views whose axes mix several axes of the base are followed up to this many entries: each place is an id on every axis of the
base, and 64 Ki ids are half a MiB."""


@dataclass(eq=False)
class Block:
    """One piece of memory.

    Attributes:
        base: the node that made it.
        tangled: whether it is not known which node sees which part of it.
        patch: its content after the first write, None before.
        fields: the fields of its nodes since the last write.
    """

    base: fx.Node
    tangled: bool = False
    patch: Patchwork | None = None
    fields: dict[fx.Node, Any] = field(default_factory=dict)

    @property
    def without_values(self) -> bool:
        """Whether nothing was written to memory that was made without values."""
        made = operator_name(self.base) in _WITHOUT_VALUES
        return made and (self.patch is None or bool((self.patch.states == GARBAGE).all()))

    @property
    def open(self) -> bool:
        """Whether no entry has a field of its own as yet."""
        return self.patch is not None and not (self.patch.states == SETTLED).any()

    def write(self, patch: Patchwork) -> None:
        """Gives the block another content from now on."""
        self.patch = patch
        self.fields.clear()


class Memory:
    """The blocks of a graph that writes anywhere."""

    def __init__(self, graph: fx.Graph, storage: Storage, sizes: Sizes) -> None:
        self._blocks: dict[fx.Node, Block] = {}
        self._sources: dict[fx.Node, fx.Node] = {}
        self._sizes = sizes
        if storage.written:
            for node in graph.nodes:
                self._add(node, list(dict.fromkeys(storage.sources(node))))

    def _add(self, node: fx.Node, sources: list[fx.Node]) -> None:
        """Notes the block that a node belongs to."""
        sources = [source for source in sources if source in self._blocks]
        shared = self._shares(node, sources) if sources else False
        if shared is False:
            made = node.meta.get("val")
            if isinstance(made, torch.Tensor) or any(isinstance(value, torch.Tensor) for value in flat(made)):
                self._blocks[node] = Block(node)
            return
        block = self._blocks[sources[0]]
        self._blocks[node], self._sources[node] = block, sources[0]
        if len(sources) > 1 or shared is None:
            for other in [block, *(self._blocks[source] for source in sources)]:
                other.tangled = True

    def _shares(self, node: fx.Node, sources: list[fx.Node]) -> bool | None:
        """Whether the node's result lies in the memory of its argument; None where that is not known."""
        if not may_return_input(node):
            return True
        if len(sources) != 1 or not isinstance(node.target, torch._ops.OpOverload):
            return None
        try:
            copies: dict[fx.Node, torch.Tensor] = {}

            def on_meta(source: fx.Node) -> Any:
                return _on_meta(self._sizes.of(source), source, copies)

            result = node.target(*replaced_in(node.args, on_meta), **replaced_in(node.kwargs, on_meta))
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None
        if not isinstance(result, torch.Tensor):
            return None
        return bool(result.untyped_storage()._cdata == copies[sources[0]].untyped_storage()._cdata)

    def block(self, node: fx.Node) -> Block | None:
        """Returns the block of a node, None where the graph writes nothing."""
        return self._blocks.get(node)

    def path(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that lead from the base of a block (left out) to a node of it."""
        found = []
        while node in self._sources:
            found.append(node)
            node = self._sources[node]
        return found[::-1]

    def source(self, node: fx.Node) -> fx.Node:
        """Returns the node that a view was made from."""
        return self._sources[node]


def replaced_in(value: Any, function: Any) -> Any:
    """Arguments with their nodes replaced and every device the meta device."""
    if isinstance(value, dict):
        return {key: replaced_in(item, function) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(replaced_in(item, function) for item in value)
    return torch.device("meta") if isinstance(value, torch.device) else replaced(value, function)


def _on_meta(fake: Any, node: fx.Node, copies: dict[fx.Node, torch.Tensor]) -> Any:
    """Returns a tensor of the same sizes and strides without memory."""
    if not isinstance(fake, torch.Tensor):
        return fake
    if node not in copies:
        copies[node] = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device="meta")
    return copies[node]


def numbered(shape: tuple[int, ...]) -> Iterator[ScaleField]:
    """Yields for each axis of a base a field that numbers its positions; a view of it says where its entries lie."""
    for axis, size in enumerate(shape):
        at = np.arange(size, dtype=np.int64).reshape([size if k == axis else 1 for k in range(len(shape))])
        yield ScaleField(shape, ((1, at),))


def placed(value: ScaleField | AnyField, order: list[int | None], shape: tuple[int, ...]) -> ScaleField | AnyField:
    """Returns the field of a write through a view, with the axes of ``base[places]``; None in `order`: an axis of size 1."""
    if isinstance(value, AnyField):
        return AnyField(shape)

    def move(ids: Ids) -> Ids:
        kept = [axis for axis in order if axis is not None]
        rest = [axis for axis in range(ids.ndim) if axis not in kept]
        moved = ids.transpose([*rest, *kept]).reshape([ids.shape[axis] for axis in kept])
        sizes = iter(moved.shape)
        result: Ids = moved.reshape([1 if axis is None else next(sizes) for axis in order])
        return result

    return ScaleField(shape, tuple((c, move(ids)) for c, ids in value.terms))


def places_of(
    numbers: list[Ids], shape: tuple[int, ...], view: tuple[int, ...], unknown: bool = False
) -> tuple[list[Place], list[int | None]] | None:
    """Returns the places of a view's entries in its base.

    Args:
        numbers: for each axis of the base, the position of each entry of the view along it (of size 1 on constant axes).
        shape: of the base.
        view: shape of the view.
        unknown: whether it is not known where the view lies along some axis of the base.

    Returns:
        (place on each axis of the base, for each axis of ``base[places]`` that of the view); None where it would be large, or
        where entries of the view share one place.
    """
    axes = [[k for k, size in enumerate(ids.shape) if size > 1] for ids in numbers]
    counts = [sum(k in found for found in axes) for k in range(len(view))]
    if not unknown and any(size > 1 and count == 0 for size, count in zip(view, counts, strict=True)):
        return None
    joint = [axis for axis, found in enumerate(axes) if len(found) > 1 or any(counts[k] > 1 for k in found)]
    together = sorted({k for axis in joint for k in axes[axis]})
    # Axes that meet one of these are read together with them.
    joint = [axis for axis, found in enumerate(axes) if set(found) & set(together)]
    if np.prod([view[k] for k in together], dtype=np.int64) > LARGEST:
        return None
    places: list[Place] = []
    for axis, (ids, found) in enumerate(zip(numbers, axes, strict=True)):
        if axis in joint:
            wide = np.broadcast_to(ids, [view[k] if k in together else 1 for k in range(len(view))])
            places.append(wide.reshape([view[k] for k in together]))
        else:
            place = _range_of(ids.ravel(), shape[axis], bool(found))
            if place is False:
                return None
            places.append(place)  # type: ignore[arg-type]
    if joint and not unknown and _repeats([places[axis] for axis in joint]):
        return None  # as the windows of `unfold` do
    start, rank, where = block_of(places)
    order: list[int | None] = [None] * (rank + sum(k >= 0 for k in where))
    order[start : start + rank] = together
    for axis, at in enumerate(where):
        if at >= 0:
            order[at] = axes[axis][0] if axes[axis] else None
    return places, order


def _repeats(arrays: list[Any]) -> bool:
    """Whether some place, given by its position on each of several axes, comes twice."""
    together = np.stack([array.ravel() for array in arrays], axis=1)
    return len(np.unique(together, axis=0)) < len(together)


def _range_of(positions: Ids, size: int, varies: bool) -> slice | bool | None:
    """Positions along one axis as a slice, None for all of them in order, False where they are neither."""
    if not varies:
        return None if size == 1 else slice(int(positions[0]), int(positions[0]) + 1)
    steps = np.diff(positions)
    if not (steps == steps[0]).all() or steps[0] == 0:
        return False
    first, step = int(positions[0]), int(steps[0])
    if step == 1 and len(positions) == size:
        return None
    end = first + step * len(positions)
    return slice(first, end if end >= 0 else None, step)

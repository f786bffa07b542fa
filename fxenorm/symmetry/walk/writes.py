"""The content of memory while a graph is walked: writes through any view, and the fields that every other view then shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from ...field import AnyField, Equations, ScaleField
from ...field.overlay import GARBAGE, OPEN, Patchwork, filled, overlay, patchwork_of, shape_at
from ..graph.memory import Block, Memory, numbered, placed, places_of

__all__ = ["Writes"]

Rerun = Callable[[fx.Node, Any, Equations], Any]
"""Runs the rule of a view once more: from the node, the value of what it is a view of and equations, the value of the view."""


class Writes:
    """Follows the blocks of one graph.

    Args:
        memory: the blocks.
        equations: those of the model.
        rerun: see `Rerun`.
    """

    def __init__(self, memory: Memory, equations: Equations, rerun: Rerun) -> None:
        self._memory = memory
        self._equations = equations
        self._rerun = rerun

    def written(self, node: fx.Node) -> bool:
        """Whether something was written to the node's memory."""
        block = self._memory.block(node)
        return block is not None and block.patch is not None

    def without_values(self, node: fx.Node) -> bool:
        """Whether the node's memory was made without values and never written to."""
        block = self._memory.block(node)
        return block is not None and block.without_values

    def current(self, node: fx.Node) -> Any:
        """Returns the value of a node whose memory was written to."""
        block = self._memory.block(node)
        if block is None or block.patch is None:
            raise LookupError(f"nothing was written to the memory of {node.name}")
        if block.base not in block.fields:
            block.fields[block.base] = filled(block.patch, self._equations)
        path = self._memory.path(node)
        start = max((k + 1 for k, step in enumerate(path) if step in block.fields), default=0)
        value = block.fields[path[start - 1] if start else block.base]
        for step in path[start:]:
            value = self._rerun(step, value, self._equations)
            block.fields[step] = value
        return value

    def write(self, target: fx.Node, new: ScaleField | AnyField, before: Callable[[fx.Node], Any], origin: int) -> bool:
        """Writes `new` to the memory of `target`.

        Args:
            target: the node that is written to.
            new: the field of the written values.
            before: gives the field of a base to which nothing was written as yet.
            origin: of the writing call.

        Returns:
            Whether it is known which node sees which part of it; nothing is changed where it is not.
        """
        block = self._memory.block(target)
        if block is None or block.tangled:
            return False
        if block.patch is None:
            first = before(block.base)
            if not isinstance(first, (ScaleField, AnyField)):
                return False
            block.write(patchwork_of(AnyField(first.shape), GARBAGE) if block.without_values else patchwork_of(first))
        path = self._memory.path(target)
        if not path:
            block.write(patchwork_of(new))
            return True
        return self._write_part(block, path, target, new, origin)

    def hold(self, node: fx.Node, origin: int) -> None:
        """Requires that the whole memory of the node stays as it is."""
        block = self._memory.block(node)
        if block is not None and block.patch is not None:
            self._equations.require_zero(ScaleField(block.patch.shape, block.patch.terms), origin)
            block.write(patchwork_of(ScaleField(block.patch.shape)))

    def _write_part(self, block: Block, path: list[fx.Node], target: fx.Node, new: ScaleField | AnyField, origin: int) -> bool:
        """Writes to the part of a block that a view shows."""
        patch = block.patch
        if patch is None:
            return False
        numbers, unknown = [], []
        for axis, field in enumerate(numbered(patch.shape)):
            scratch = Equations(10 * max(1, field.shape[axis]))
            value: Any = field
            for step in path:
                value = self._rerun(step, value, scratch)
            if not isinstance(value, ScaleField) or len(value.terms) != 1 or value.terms[0][0] != 1:
                return False
            numbers.append(value.terms[0][1])
            if scratch.ties or scratch.zeros or scratch.sums:
                unknown.append(axis)
        if unknown and not block.open:
            return self._write_somewhere(block, target, new, origin)
        if unknown and isinstance(new, ScaleField):
            covered = [any(ids.shape[k] > 1 for ids in numbers) for k in range(len(new.shape))]
            new = self._equations.require_constant(new, [k for k, found in enumerate(covered) if not found], origin)
        found = places_of(numbers, patch.shape, new.shape, bool(unknown))
        if found is None:
            return False
        places, order = found
        for axis in unknown:
            # The place is not known: every entry that is read along the axis was written.
            places[axis] = None
        value = placed(new, order, shape_at(patch.shape, places))
        block.write(overlay(patch, patchwork_of(value), places))
        return True

    def _write_somewhere(self, block: Block, target: fx.Node, new: ScaleField | AnyField, origin: int) -> bool:
        """Writes at a place that depends on the data: the former and the written values carry one field."""
        if isinstance(new, AnyField) or block.patch is None:
            return True
        block.write(patchwork_of(filled(opened(block.patch), self._equations)))
        old = self.current(target)
        if isinstance(old, ScaleField):
            self._equations.require_equal(new, old, origin)
        return isinstance(old, ScaleField)


def opened(patch: Patchwork) -> Patchwork:
    """Returns memory with its unwritten entries open: every entry that is read was written."""
    states = patch.states.copy()
    states[states == GARBAGE] = OPEN
    return Patchwork(patch.shape, patch.terms, states)

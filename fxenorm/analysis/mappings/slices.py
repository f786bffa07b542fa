"""The tensors that carry a group, cut into the layers that a tool sees: rows that are divided, columns that are multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.terms import normalise
from ..analysis import Analysis
from ..groups import Group, multiplies
from .entries import MapLayer

__all__ = ["NoMap", "Sides", "Slice", "sides_of"]

Ids = NDArray[np.int64]


class NoMap(Exception):
    """The group has no map; the message is the reason."""


@dataclass(frozen=True)
class Slice:
    """One layer of a group.

    Attributes:
        layer: its names.
        ids: by row of a smooth layer, by column of a balance layer, the variable of the group; -1: none.
        axes: number of axes of its weight.
    """

    layer: MapLayer
    ids: Ids
    axes: int


@dataclass(frozen=True)
class Sides:
    """All that a group moves.

    Attributes:
        smooth, balance: the layers that are divided and multiplied.
        biases: by name, the variables of what is added: it has to be the smooth layer's bias.
    """

    smooth: tuple[Slice, ...]
    balance: tuple[Slice, ...]
    biases: dict[str, Ids]


def sides_of(analysis: Analysis, group: Group, unpack: bool) -> Sides:
    """Cuts the tensors of a group into layers.

    Args:
        analysis: the plan's findings.
        group: one of its groups.
        unpack: whether stacked experts are taken apart.

    Raises:
        NoMap: a tensor moves in another way than by rows or by columns of a layer's weight.
    """
    symmetry = analysis.symmetry
    smooth: list[Slice] = []
    balance: list[Slice] = []
    biases: dict[str, Ids] = {}
    for name in carriers(analysis, group):
        if name in symmetry.buffers:
            raise NoMap(f"it moves the buffer {name}, and the tool moves weights and biases alone")
        coefficient, ids = _only_term(analysis, group, name)
        shape = symmetry.shapes[name]
        if coefficient > 0 and not multiplies(symmetry, name):
            biases[name] = np.broadcast_to(ids, shape).reshape(-1)
        else:
            (smooth if coefficient > 0 else balance).extend(_slices(name, shape, ids, coefficient > 0, unpack))
    return Sides(tuple(smooth), tuple(balance), biases)


def carriers(analysis: Analysis, group: Group) -> list[str]:
    """Returns the tensors that carry a variable of the group: producers, consumers, then buffers."""
    names = [port.parameter for port in (*group.producers, *group.consumers)]
    first, stop = group.variables.start, group.variables.stop
    for name in sorted(analysis.symmetry.buffers):
        carried = analysis.variables_of.get(name)
        if carried is not None and bool(((carried >= first) & (carried < stop)).any()):
            names.append(name)
    return list(dict.fromkeys(names))


def _only_term(analysis: Analysis, group: Group, name: str) -> tuple[int, Ids]:
    """Returns the sign and the ids with which a tensor carries the group; -1 where an entry carries none of it."""
    found = []
    for coefficient, ids in normalise(analysis.symmetry.exponents[name], len(analysis.symmetry.shapes[name])):
        inside = (ids >= group.variables.start) & (ids < group.variables.stop)
        if bool(inside.any()):
            found.append((coefficient, np.where(inside, ids, -1)))
    if len(found) != 1:
        raise NoMap(f"{name} moves by it in two ways at once (as fused q and k do), and the tool knows one way a layer")
    if abs(found[0][0]) != 1:
        raise NoMap(f"{name} moves by the power {found[0][0]} of each factor, and the tool knows the powers 1 and -1")
    return found[0]


def _slices(name: str, shape: tuple[int, ...], ids: Ids, smooth: bool, unpack: bool) -> Iterator[Slice]:
    """Yields the layers of one tensor that multiplies."""
    axis = 0 if smooth else len(shape) - 1
    if len(shape) == 3 and name.rpartition(".")[2] in ("gate_up_proj", "down_proj"):
        if not unpack:
            raise NoMap(f"{name} stacks the experts in one tensor of shape {shape}, and the tool wants a layer for each expert")
        yield from _expert_slices(name, shape, ids, smooth)
        return
    if not name.endswith(".weight"):
        raise NoMap(f"{name} is not the weight of a module, which is all that the tool looks up")
    if len(shape) != 2 and not (smooth and len(shape) == 1):
        raise NoMap(f"{name} has {len(shape)} axes, and the tool scales the rows and columns of matrices")
    _along(name, ids, axis, smooth)
    layer = MapLayer(name.removesuffix(".weight"), name, None, (0, shape[0]))
    yield Slice(layer, np.broadcast_to(ids, _spread(shape, axis)).reshape(-1), len(shape))


def _expert_slices(name: str, shape: tuple[int, ...], ids: Ids, smooth: bool) -> Iterator[Slice]:
    """Yields the layers of stacked experts: (experts, rows, columns), the gate's rows before those of up."""
    module, _, kind = name.rpartition(".")
    axis = 1 if smooth else 2
    _along(name, ids, axis, smooth, 0)
    count, rows, _ = shape
    by_expert = np.broadcast_to(ids, (count, *_spread(shape[1:], axis - 1))).reshape(count, -1)
    half = rows // 2
    parts = [("gate_proj", 0, half), ("up_proj", half, rows)] if kind == "gate_up_proj" else [("down_proj", 0, rows)]
    for expert in range(count):
        for part, start, stop in parts:
            own = by_expert[expert, start:stop] if smooth else by_expert[expert]
            if bool((own >= 0).any()):
                yield Slice(MapLayer(f"{module}.{expert}.{part}", name, expert, (start, stop)), own, 2)


def _spread(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Returns the shape with size 1 on all other axes."""
    return tuple(size if place == axis else 1 for place, size in enumerate(shape))


def _along(name: str, ids: Ids, axis: int, smooth: bool, *also: int) -> None:
    """Raises `NoMap` where the ids vary along another axis than the tool's."""
    other = [place for place, size in enumerate(ids.shape) if size > 1 and place not in (axis, *also)]
    if other:
        verb, wanted = ("divides", "rows") if smooth else ("multiplies", "columns")
        raise NoMap(f"{name} carries it along axis {other[0]}, and the tool {verb} {wanted} (axis {axis}) alone")

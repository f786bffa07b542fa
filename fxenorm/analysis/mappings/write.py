"""Writes the maps of a plan for one tool, and checks each against the exponents: the tool's factors must be free ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..analysis import Analysis
from ..groups import Group, Port
from .entries import LeftOut, MapEntry, MapLayer
from .result import Mappings
from .slices import NoMap, Sides, Slice, sides_of
from .targets import Target, block_of, target_named

__all__ = ["class_names", "mappings"]

Classes = Mapping[str, frozenset[str]]
Ids = NDArray[np.int64]


def class_names(model: nn.Module) -> dict[str, frozenset[str]]:
    """Returns, by module, the names of its class and of all classes that this extends."""
    return {name: frozenset(base.__name__ for base in type(module).__mro__) for name, module in model.named_modules()}


def mappings(analysis: Analysis, target: str, classes: Classes) -> Mappings:
    """Writes the maps of all groups for one tool.

    Args:
        analysis: the plan's findings.
        target: the tool's name.
        classes: by module, as `class_names` returns them.

    Raises:
        OptionError: there is no tool of that name.
    """
    tool = target_named(target)
    entries: list[MapEntry] = []
    left_out: list[LeftOut] = []
    for group in analysis.groups:
        try:
            entries += _entries(analysis, group, tool, classes)
        except NoMap as reason:
            left_out.append(LeftOut(group.name, _names(group.producers), _names(group.consumers), str(reason)))
    return Mappings(target, tuple(entries), tuple(left_out))


def _names(ports: Iterable[Port]) -> tuple[str, ...]:
    """Returns the distinct parameters of some ports, in order."""
    return tuple(dict.fromkeys(port.parameter for port in ports))


def _entries(analysis: Analysis, group: Group, tool: Target, classes: Classes) -> list[MapEntry]:
    """Returns the maps of a group, one a smooth layer, which together move each of its variables once."""
    sides = sides_of(analysis, group, tool.unpacks_experts)
    for side, missing in ((sides.smooth, "writes"), (sides.balance, "reads")):
        if not side:
            raise NoMap(f"no layer {missing} these channels; the tool needs one on each side")
    other = [part.layer.module for part in sides.smooth if part.axes != 1]
    if tool.norms_only and other:
        raise NoMap(f"{other[0]} is no normalisation, and the tool smooths behind these alone")
    taken: dict[int, str] = {}
    for part in sides.smooth:
        for variable in np.unique(part.ids[part.ids >= 0]).tolist():
            if variable in taken:
                raise NoMap(
                    f"both {taken[variable]} and {part.layer.module} write these channels, and the tool divides one layer"
                )
            taken[variable] = part.layer.module
    found = []
    left = list(sides.balance)
    for part in sides.smooth:
        own = [other for other in left if bool(np.isin(other.ids, part.ids[part.ids >= 0]).any())]
        left = [other for other in left if other not in own]
        if not own:
            raise NoMap(f"no layer reads the channels of {part.layer.module}")
        entry = _entry(analysis, group, part, own, tool)
        _check_bias(analysis, part, sides, entry)
        _check_tool(entry, tool, classes)
        found.append(entry)
    if left:
        raise NoMap(f"no layer writes the channels that {left[0].layer.module} reads")
    return found


def _entry(analysis: Analysis, group: Group, smooth: Slice, balance: list[Slice], tool: Target) -> MapEntry:
    """Matches rows with columns: one to one, with the last rows, or with repeated heads."""
    name = smooth.layer.module
    rows = np.flatnonzero(smooth.ids >= 0)
    written, columns = smooth.ids[rows], balance[0].ids
    for other in balance:
        if bool((other.ids < 0).any()):
            raise NoMap(f"{other.layer.module} reads other channels too, which the tool would multiply with these")
        if not np.array_equal(other.ids, columns):
            raise NoMap(f"{balance[0].layer.module} and {other.layer.module} read the channels in different orders")
    if np.unique(written).size != written.size:
        raise NoMap(f"several rows of {name} have to move by one factor, and the tool gives each its own")
    offset = analysis.symmetry.offsets.get(smooth.layer.parameter, 0.0)
    if any(other.layer.parameter in analysis.symmetry.offsets for other in balance):
        raise NoMap("the model adds a number to the weight of a balance layer, and the tool multiplies the stored weight")
    layers, norm = tuple(other.layer for other in balance), smooth.axes == 1
    if np.array_equal(written, columns):
        layer = smooth.layer
        if rows.size < smooth.ids.size:
            layer = _last_rows(layer, rows, smooth.ids.size, tool)
        return MapEntry(group.name, layer, layers, norm, 1, columns.size, offset)
    times, head = _repeated(written, columns)
    if not times:
        raise NoMap(f"{layers[0].module} reads the channels of {name} in another order, and the tool pairs row i with column i")
    if not tool.repeats or rows.size < smooth.ids.size:
        raise NoMap(
            f"{layers[0].module} reads each head of {name} {times} times (grouped-query attention), and the tool does not spread"
            f" {rows.size} rows over {columns.size} columns"
        )
    return MapEntry(group.name, smooth.layer, layers, norm, times, head, offset)


def _last_rows(layer: MapLayer, rows: Ids, count: int, tool: Target) -> MapLayer:
    """Returns the layer with the rows that move, where the tool takes these; the last ones it may."""
    if not tool.last_rows:
        raise NoMap(f"{rows.size} of {count} rows of {layer.module} write these channels, and the tool divides all rows")
    if int(rows[0]) != count - rows.size:
        raise NoMap(
            f"{rows.size} rows of {layer.module} that are not its last ones write these channels, and the tool divides those"
        )
    start = layer.rows[0] + int(rows[0])
    return MapLayer(layer.module, layer.parameter, layer.expert, (start, start + rows.size))


def _repeated(written: Ids, columns: Ids) -> tuple[int, int]:
    """Returns how often each head stands in the columns and its size; (0, 0) where these are no repeated heads."""
    times, rest = divmod(columns.size, written.size)
    again = np.flatnonzero(columns == written[0])
    if rest or times < 2 or again.size != times:
        return 0, 0
    head = int(again[1])
    if written.size % head:
        return 0, 0
    same = np.array_equal(np.repeat(written.reshape(-1, head), times, axis=0).reshape(-1), columns)
    return (times, head) if same else (0, 0)


def _check_bias(analysis: Analysis, smooth: Slice, sides: Sides, entry: MapEntry) -> None:
    """The tool divides the smooth layer's bias, all of it, and no other: so must the group."""
    own = f"{smooth.layer.module}.bias" if smooth.layer.expert is None else ""
    foreign = [name for name in sides.biases if name != own]
    if foreign:
        raise NoMap(f"{foreign[0]} moves with it, and the tool divides the bias of {smooth.layer.module} alone")
    if own not in analysis.symmetry.shapes:
        return
    if own not in sides.biases or own in analysis.symmetry.offsets or not np.array_equal(sides.biases[own], smooth.ids):
        raise NoMap(f"{own} does not move as the rows of its weight do, and the tool divides both")
    if entry.smooth.rows != smooth.layer.rows:
        raise NoMap(f"a part of {own} moves, and the tool divides all of it")


def _check_tool(entry: MapEntry, tool: Target, classes: Classes) -> None:
    """Raises `NoMap` for a map that the tool has no form for."""
    smooth, names = entry.smooth.module, [layer.module for layer in entry.balance]
    if entry.offset and (entry.offset != 1 or not tool.adds_one & classes.get(smooth, frozenset())):
        raise NoMap(
            f"the model multiplies by {entry.offset:g} + {entry.smooth.parameter}, and the tool multiplies the stored weight: it"
            " cannot express this"
        )
    if tool.one_consumer and not entry.norm and len(names) > 1:
        raise NoMap(f"{len(names)} layers read {smooth}, which is no normalisation, and the tool takes one")
    other = [name for name in names if "Linear" not in classes.get(name, frozenset())]
    if tool.linear_only and other:
        raise NoMap(f"{other[0]} is no nn.Linear, and the tool multiplies these alone: {smooth} would lose a consumer")
    block = block_of(smooth)
    if tool.in_block and (not block or any(block_of(name) != block for name in names)):
        raise NoMap(f"{smooth} and its consumers do not lie in one decoder block, and the tool scales block by block")

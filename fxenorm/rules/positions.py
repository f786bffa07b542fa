"""The entries that an index names, where it is known before the run; else the axes along which it may name any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..field import Ids
from .call import Call
from .laws import positions_of

__all__ = ["along_one_axis", "in_order", "named_by", "unknown_block"]

LARGEST = 65_536
"""Positions that differ along more than one axis are followed up to this many; above, they count as unknown. Each gets an id
on every axis, and may get a variable: 64 Ki ids are half a MiB."""


def named_by(call: Call, name: str, rank: int) -> list[Ids | None] | None:
    """Returns for each of `rank` axes the positions that a list of indices names (None: all); None where they are not known."""
    found: list[Ids | None] = []
    for position, fake in enumerate(call.fakes[name]):
        if fake is None:
            found.append(None)
            continue
        value = call.constants(name, position)
        if value is None:
            return None
        if value.dtype in (torch.bool, torch.uint8):
            found += [positions_of(places) for places in value.nonzero(as_tuple=True)]
        else:
            found.append(positions_of(value))
    return [*found, *[None] * (rank - len(found))]


def unknown_block(fakes: Sequence[Any]) -> tuple[list[int], int, int]:
    """Returns the axes of an index that is not known before the run, and those of its result.

    Returns:
        (indexed axes, first axis and number of axes in the result that stand in their place).
    """
    indexed: list[int] = []
    ranks, axis = [], 0
    for fake in fakes:
        mask = fake is not None and fake.dtype in (torch.bool, torch.uint8)
        width = fake.ndim if mask else 1
        if fake is not None:
            indexed += list(range(axis, axis + width))
            ranks.append(1 if mask else fake.ndim)
        axis += width
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1)) if indexed else False
    return indexed, indexed[0] if adjacent else 0, max(ranks, default=0)


def along_one_axis(index: Ids, axis: int, shape: Sequence[int]) -> tuple[list[slice | Ids | None], list[int]] | None:
    """Returns the entries that gather and scatter name with an `index` of positions along `axis`.

    Args:
        index: (...) positions, with as many axes as the tensor; where it is smaller on other axes, it names their first
            positions.
        axis: along which it holds positions.
        shape: of the tensor that is read or written.

    Returns:
        (place on each axis, order in which the axes of `index` appear in ``tensor[places]``); None where it would be large.
    """
    joint = [
        k for k, size in enumerate(index.shape) if k == axis or (size > 1 and not bool((index == index.take([0], axis=k)).all()))
    ]
    small = index[tuple(slice(None) if k in joint else slice(0, 1) for k in range(index.ndim))]
    if small.size > LARGEST and len(joint) > 1:
        return None
    small = small.reshape([index.shape[k] for k in joint]) % max(shape[axis], 1)
    grid = np.meshgrid(*(np.arange(index.shape[k]) for k in joint), indexing="ij")
    places: list[slice | Ids | None] = []
    for k, size in enumerate(index.shape):
        if k in joint:
            places.append(small if k == axis else grid[joint.index(k)])
        else:
            places.append(None if size == shape[k] else slice(0, size))
    return places, in_order(joint, index.ndim)


def in_order(joint: Sequence[int], rank: int) -> list[int]:
    """Returns the order of axes of which `joint` are indexed together: in place if adjacent, else in front, as in torch."""
    if list(joint) == list(range(joint[0], joint[-1] + 1)):
        return list(range(rank))
    return [*joint, *(k for k in range(rank) if k not in joint)]

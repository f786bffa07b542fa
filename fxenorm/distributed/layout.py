"""The entries of a tensor that a process holds, read off its placements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import RescaleError
from .dtensors import is_distributed, local_part

__all__ = ["Layout", "layout_of", "placements_of", "whole"]

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The part of one tensor that a process holds.

    Attributes:
        shape: of the whole tensor.
        positions: by axis, the positions held, ascending within each piece; None: all of them.
        counts: whether this process is the one, among those that hold the same part, which counts it in sums.
    """

    shape: tuple[int, ...]
    positions: tuple[Positions | None, ...]
    counts: bool

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of the part that this process holds."""
        return tuple(size if held is None else held.size for size, held in zip(self.shape, self.positions, strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether the part has no entry."""
        return not math.prod(self.local_shape)

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """Returns the part of an array that broadcasts to the tensor, one axis for each of the tensor's."""
        for axis, held in enumerate(self.positions):
            if held is not None and array.shape[axis] > 1:
                array = _narrow(array, axis, held)
        return array

    def cut_tensor(self, tensor: Tensor) -> Tensor:
        """`cut` for tensors; a view where the positions follow one another."""
        for axis, held in enumerate(self.positions):
            if held is None or tensor.shape[axis] == 1:
                continue
            if _is_range(held):
                tensor = tensor.narrow(axis, int(held[0]) if held.size else 0, held.size)
            else:
                tensor = tensor.index_select(axis, torch.from_numpy(held).to(tensor.device))
        return tensor


def whole(shape: Sequence[int], counts: bool) -> Layout:
    """Returns the layout of a tensor of which every process holds all."""
    return Layout(tuple(shape), (None,) * len(shape), counts)


def placements_of(tensor: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """Returns the mesh and the placements of a tensor, which are equal for equal parts; None and () if it is not distributed."""
    if not is_distributed(tensor):
        return None, ()
    held: Any = tensor
    return held.device_mesh, tuple(held.placements)


def layout_of(name: str, tensor: Tensor, first_rank: int, rank: int, *, summand: bool = False) -> Layout:
    """Returns the part of a tensor that this process holds.

    Args:
        name: for messages.
        tensor: a DTensor or an ordinary one, of which every process holds all.
        first_rank: the global rank of the first process of the group; of what several hold it decides who counts.
        rank: this process's global rank.
        summand: whether the tensor may be a sum over processes of which each holds a summand (gradients that nobody has added
            up yet): to be multiplied, all of it is held then.

    Raises:
        RescaleError: a placement is neither Shard nor Replicate, this process is not in the tensor's mesh, or the local part
            has another shape than the placements say.
    """
    if not is_distributed(tensor):
        return whole(tuple(tensor.shape), rank == first_rank)
    held: Any = tensor
    mesh, placements = held.device_mesh, tuple(held.placements)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise RescaleError(f"{name!r} lies on {mesh}, of which this process (rank {rank}) is no part: nothing was rescaled")
    positions: list[Positions | None] = [None] * tensor.ndim
    # Where the mesh is a part of a larger one, other parts hold the same: the part with the first process counts.
    counts = first_rank in mesh.mesh.reshape(-1).tolist()
    for place, number, count in zip(placements, coordinate, mesh.shape, strict=True):
        kind = type(place).__name__
        if kind == "Replicate":
            counts = counts and number == 0
        elif place.is_partial() and summand:
            continue
        elif kind in ("Shard", "_StridedShard") and tensor.ndim:
            axis = place.dim % tensor.ndim
            known = positions[axis]
            known = np.arange(tensor.shape[axis], dtype=np.int64) if known is None else known
            # Strided: the tensor is in pieces already along this axis, and each of them is cut.
            pieces = _chunks(known, getattr(place, "split_factor", 1) if kind == "_StridedShard" else 1)
            positions[axis] = np.concatenate([_chunks(piece, count)[number] for piece in pieces])
        else:
            raise RescaleError(
                f"{name!r} has placement {place} on a mesh of shape {tuple(mesh.shape)}: only Shard and Replicate say which "
                "entries a process holds. Nothing was rescaled; redistribute it, or rescale before sharding the model"
            )
    layout = Layout(tuple(tensor.shape), tuple(positions), counts)
    found = tuple(local_part(tensor).shape)
    if found != layout.local_shape:
        raise RescaleError(
            f"this process (rank {rank}) holds a part of shape {found} of {name!r} {tuple(tensor.shape)}, but placements "
            f"{placements} on a mesh of shape {tuple(mesh.shape)} give {layout.local_shape}: nothing was rescaled"
        )
    return layout


def _chunks(positions: Positions, count: int) -> list[Positions]:
    """Positions in `count` pieces as `torch.chunk` cuts them, with empty ones at the end where they do not suffice."""
    size = -(-positions.size // count) if positions.size else 0
    return [positions[number * size : (number + 1) * size] for number in range(count)]


def _is_range(positions: Positions) -> bool:
    """Whether positions follow one another without gaps."""
    return bool((np.diff(positions) == 1).all())


def _narrow(array: NDArray[Any], axis: int, positions: Positions) -> NDArray[Any]:
    """Returns some positions of one axis; a view where they follow one another."""
    if not _is_range(positions):
        return array.take(positions, axis)
    start = int(positions[0]) if positions.size else 0
    return array[(slice(None),) * axis + (slice(start, start + positions.size),)]

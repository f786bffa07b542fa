"""Tensors a part at a time: what is worked out of one part stays in cache, and no temporary grows with the tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from torch import Tensor

__all__ = ["Index", "part_of", "parts_of", "rows_of"]

_PART_ON_CPU, _PART_ELSEWHERE = 1 << 17, 1 << 26
"""Entries at a time: on a CPU what its second-level cache holds in float64, elsewhere a bound on the temporaries."""


Index = tuple[slice, ...]
"""Which part of a tensor: slices of its first axes."""


def parts_of(tensor: Tensor) -> Iterator[Index]:
    """Parts of few enough entries each that together are a tensor, each of them without gaps in the order of its axes."""
    most = _most(tensor)
    if tensor.numel() <= most:
        yield ()
        return
    sizes = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
    axis = next(axis for axis, size in enumerate(sizes) if size <= most)
    step = most // sizes[axis]
    for before in itertools.product(*(range(size) for size in tensor.shape[:axis])):
        for start in range(0, tensor.shape[axis], step):
            yield (*(slice(place, place + 1) for place in before), slice(start, start + step))


def part_of(tensor: Tensor, index: Index) -> Tensor:
    """The part of something that broadcasts to a tensor which belongs to a part of the tensor."""
    return tensor[tuple(slice(None) if size == 1 else part for size, part in zip(tensor.shape, index, strict=False))]


def rows_of(table: Tensor) -> Iterator[slice]:
    """Slices of the rows of a table of few enough entries each."""
    step = max(1, _most(table) // max(1, table.shape[1]))
    for start in range(0, table.shape[0], step):
        yield slice(start, start + step)


def _most(tensor: Tensor) -> int:
    """Entries at a time."""
    return _PART_ON_CPU if tensor.device.type == "cpu" else _PART_ELSEWHERE

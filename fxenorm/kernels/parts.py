"""Tensors a part at a time: what is worked out of one part stays in cache, and no temporary grows with the tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from torch import Tensor

__all__ = ["Index", "part_of", "parts_of", "rows_of"]

_PART_ON_CPU, _PART_ELSEWHERE = 1 << 17, 1 << 26
"""Entries at a time: on a CPU 1 MiB of float64, which its second-level cache holds; elsewhere a bound on temporaries, 512 MiB."""


Index = tuple[slice, ...]
"""Which part of a tensor: slices of its first axes."""


def parts_of(tensor: Tensor) -> Iterator[Index]:
    """Yields parts of few enough entries each that together are a tensor, each without gaps in the order of its axes."""
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
    """Returns the part that belongs to a part of a tensor, of another that broadcasts to the tensor."""
    return tensor[tuple(slice(None) if size == 1 else part for size, part in zip(tensor.shape, index, strict=False))]


def rows_of(table: Tensor) -> Iterator[slice]:
    """Yields slices of the rows of a table of few enough entries each."""
    step = max(1, _most(table) // max(1, table.shape[1]))
    for start in range(0, table.shape[0], step):
        yield slice(start, start + step)


def _most(tensor: Tensor) -> int:
    """Returns how many entries are taken at a time."""
    return _PART_ON_CPU if tensor.device.type == "cpu" else _PART_ELSEWHERE

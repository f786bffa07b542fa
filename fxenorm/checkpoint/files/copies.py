"""Safetensors files copied byte by byte, but for the values of some tensors: header, order and metadata stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...errors import CheckpointError
from .blocks import BLOCK, read_at, write_at
from .memory import Memory
from .tensor_files import open_files, write_values

__all__ = ["copy_but", "write_again"]

_CHUNK = 16 << 20
"""Bytes that are copied at once: large enough for the disk, small beside a tensor."""


def write_again(source: Path, target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file again with other values of its tensors.

    Args:
        source: the file that gives the form.
        target: the new file.
        tensors: by name, of the type and shape that they have in `source`; those of types that cannot be rescaled, and those
            that are not given, are copied.

    Raises:
        CheckpointError: a tensor has another type or shape than in the file, or there is none of its name.
    """
    files = open_files(source)
    chosen = {name: tensor for name, tensor in tensors.items() if name not in files.tensors or files.holds(name)}
    for name, tensor in chosen.items():
        stored = files.tensors.get(name)
        if stored is None or stored.shape != tuple(tensor.shape) or files.dtype_of(name) != tensor.dtype:
            known = "is missing there" if stored is None else f"has type {stored.dtype} and shape {stored.shape} there"
            raise CheckpointError(
                f"{name!r}, {tensor.dtype} of shape {tuple(tensor.shape)}, has no place in {source}: it {known}"
            )
    copy_but(source, target, sorted((files.tensors[name].begin, files.tensors[name].end) for name in chosen))
    for name, tensor in chosen.items():
        write_values(target, files.tensors[name], tensor)


def copy_but(source: Path, target: Path, left: list[tuple[int, int]]) -> None:
    """Copies a file, and leaves holes in the place of some parts.

    Args:
        source, target: the files.
        left: begin and end of each part, in their order; what lies in one before is passed over.
    """
    size, room = source.stat().st_size, Memory().take(_CHUNK + BLOCK)
    with target.open("wb") as written:
        written.truncate(size)
    place = 0
    for begin, end in [*left, (size, size)]:
        _copy(source, target, place, begin, room)
        place = end


def _copy(source: Path, target: Path, begin: int, end: int, room: NDArray[np.uint8]) -> None:
    """Copies some bytes of a file to the same place in another."""
    while begin < end:
        values = read_at(source, begin, min(_CHUNK - begin % BLOCK, end - begin), room)
        if not values.size:
            raise CheckpointError(f"{source} has become shorter while it was read")
        write_at(target, begin, values)
        begin += values.size

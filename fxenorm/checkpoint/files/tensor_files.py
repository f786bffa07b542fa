"""Reads and writes single tensors of safetensors files, sharded or not, at their places on disk.

The safetensors library maps files into memory, where the pages that were read count as the process's own, and writes a shard
only whole. Here a tensor is read into memory of its own and written where it belongs, so that no more than it is held.
Format: https://github.com/huggingface/safetensors (eight bytes of length, a JSON header, the values).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from .blocks import BLOCK, flush, read_at, room_for, write_at
from .memory import Memory

__all__ = ["StoredTensor", "TensorFiles", "open_files", "write_values"]

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "C64": torch.complex64,
    }
)
"""The types whose entries can be rescaled."""

_MOST_HEADER = 100_000_000
"""Bytes of a header: the format's own limit."""

_INDEX = ".index.json"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        file: the file's name in its folder.
        dtype: the format's word for its type, as "BF16".
        shape: its shape.
        begin, end: where its bytes lie in the file.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorFiles:
    """The safetensors files of a checkpoint.

    Attributes:
        folder: where they lie.
        names: the files with tensors, in order.
        tensors: by name.
        others: further files of the folder that belong to the model, as its index and its config.
        single: whether the checkpoint is one file rather than a folder.
        memory: where tensors are read to.
    """

    folder: Path
    names: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...]
    single: bool
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def with_aliases(self, aliases: Mapping[str, str]) -> TensorFiles:
        """Returns the same files, where a tensor of several names is found under each of them.

        Args:
            aliases: by further name of a tensor, its first name.
        """
        found = dict(self.tensors)
        for alias, name in aliases.items():
            if alias in found:
                found.setdefault(name, found[alias])
        for alias, name in aliases.items():
            if name in found:
                found.setdefault(alias, found[name])
        return replace(self, tensors=found)

    def bytes_of(self, name: str) -> int:
        """Returns how many bytes a tensor has."""
        stored = self._stored(name)
        return stored.end - stored.begin

    def holds(self, name: str) -> bool:
        """Whether there is such a tensor, of a type that can be rescaled."""
        return name in self.tensors and self.tensors[name].dtype in _DTYPES

    def dtype_of(self, name: str) -> torch.dtype:
        """Returns the type of a tensor that can be rescaled."""
        return _DTYPES[self._stored(name).dtype]

    def digest(self) -> str:
        """Returns a hash of the headers and sizes: what a journal of half the work is good for."""
        digest = hashlib.sha256()
        for name in self.names:
            path = self.folder / name
            digest.update(f"{name} {path.stat().st_size} ".encode())
            digest.update(_header_bytes(path))
        return digest.hexdigest()

    def read(self, name: str) -> Tensor:
        """Returns one tensor, in memory of its own.

        Raises:
            CheckpointError: there is no such tensor, its type cannot be rescaled, or the file ends before it.
        """
        stored = self._stored(name)
        count = stored.end - stored.begin
        if not count:
            return torch.empty(stored.shape, dtype=_DTYPES[stored.dtype], device="cpu")
        dtype, path = _DTYPES[stored.dtype], self.folder / stored.file
        room = self.memory.take(room_for(stored.begin, count))
        values = torch.from_numpy(read_at(path, stored.begin, count, room))
        if values.numel() < count:
            raise CheckpointError(f"{path} ends before the values of {name!r} do: fetch it again")
        if stored.begin % BLOCK % dtype.itemsize:  # a header of odd length: numbers in memory lie at whole ones
            values = values.clone()
        return values.view(dtype).reshape(stored.shape)

    def write(self, name: str, tensor: Tensor, folder: Path) -> None:
        """Writes a tensor to its place in the file of the same name in another folder."""
        stored = self._stored(name)
        write_values(folder / stored.file, stored, tensor)

    def flush(self, names: Iterable[str], folder: Path) -> None:
        """Waits until the disk has what was written of some tensors to the files in another folder."""
        for file in sorted({self._stored(name).file for name in names}):
            flush(folder / file)

    def _stored(self, name: str) -> StoredTensor:
        """Returns where a tensor lies; raises where it cannot be rescaled."""
        stored = self.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}")
        if stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"{name!r} is stored as {stored.dtype}, which cannot be rescaled in place: balance the checkpoint before it is "
                "quantised"
            )
        return stored


def write_values(path: Path, stored: StoredTensor, tensor: Tensor) -> None:
    """Writes the values of a tensor to its place in a file that is there.

    Args:
        path: the file.
        stored: where its bytes lie.
        tensor: of that type and shape.
    """
    write_at(path, stored.begin, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def open_files(source: str | os.PathLike[str]) -> TensorFiles:
    """Finds the tensors of a checkpoint without reading their values.

    Args:
        source: a ``.safetensors`` file, or a folder with one such file, or with several and their ``*.index.json``.

    Raises:
        CheckpointError: there is no such file, it is damaged, or the index names other files.
    """
    path = Path(source)
    if path.is_file():
        if path.name.endswith(_INDEX):
            return open_files(path.parent)
        return _files(path.parent, [path.name], (), single=True)
    if not path.is_dir():
        raise CheckpointError(f"no such file or folder: {path}")
    found = sorted(item.name for item in path.iterdir() if item.is_file())
    names = [name for name in found if name.endswith(".safetensors")]
    if not names:
        raise CheckpointError(f"{path} holds no .safetensors file: convert the checkpoint with safetensors.torch.save_file first")
    others = tuple(name for name in found if name not in names)
    indices = [name for name in others if name.endswith(".safetensors" + _INDEX)]
    if not indices and len(names) > 1:
        raise CheckpointError(f"{path} holds {len(names)} .safetensors files and no index of them: name one file")
    if indices:
        names = _indexed(path, indices, names)
    return _files(path, names, others, single=False)


def _indexed(folder: Path, indices: list[str], names: list[str]) -> list[str]:
    """Returns the files that the index of a folder names."""
    if len(indices) > 1:
        raise CheckpointError(f"{folder} holds several indices ({', '.join(indices)}): keep one")
    try:
        shards = sorted(set(json.loads((folder / indices[0]).read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / indices[0]} is no index of safetensors files ({error})") from error
    missing = [name for name in shards if name not in names]
    if missing:
        raise CheckpointError(f"{folder / indices[0]} names files that are not there: {', '.join(map(str, missing[:5]))}")
    return shards


def _files(folder: Path, names: list[str], others: tuple[str, ...], single: bool) -> TensorFiles:
    """Reads the headers of the files."""
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        for key, stored in _tensors_of(folder / name).items():
            if key in tensors:
                raise CheckpointError(f"{key!r} lies in {tensors[key].file} and in {name}")
            tensors[key] = stored
    return TensorFiles(folder, tuple(names), tensors, others, single)


def _tensors_of(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file, by name."""
    raw = _header_bytes(path)
    start, size = 8 + len(raw), path.stat().st_size
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        found = {
            name: StoredTensor(
                path.name, str(item["dtype"]), tuple(map(int, item["shape"])), *(start + int(end) for end in item["data_offsets"])
            )
            for name, item in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no safetensors file: its header cannot be read ({error})") from error
    for name, stored in found.items():
        dtype = _DTYPES.get(stored.dtype)
        expected = None if dtype is None else dtype.itemsize * math.prod(stored.shape)
        length = stored.end - stored.begin
        if not start <= stored.begin <= stored.end <= size or (expected is not None and length != expected):
            raise CheckpointError(f"{path} is damaged: {name!r} should lie at bytes {stored.begin} to {stored.end} of {size}")
    return found


def _header_bytes(path: Path) -> bytes:
    """Returns the JSON header of one file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MOST_HEADER, path.stat().st_size):
            raise CheckpointError(f"{path} is no safetensors file")
        raw = file.read(length)
    if len(raw) != length:
        raise CheckpointError(f"{path} is no safetensors file: it ends in its header")
    return raw

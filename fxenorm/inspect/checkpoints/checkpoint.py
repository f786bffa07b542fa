"""`Checkpoint`: the tensors of one file, or of several with an index, by the names that they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

__all__ = ["Checkpoint", "Shard"]


@dataclass(frozen=True)
class Shard:
    """One file of weights.

    Attributes:
        path: where it is.
        names: of its tensors, in their order.
        metadata: the texts in the head of a safetensors file.
        content: the whole object that a state dict's file holds; None of safetensors.
        keys: the keys that lead from `content` to the state dict.
    """

    path: Path
    names: tuple[str, ...]
    metadata: Mapping[str, str] | None = None
    content: Any = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model, on the CPU.

    Attributes:
        given: the path as the user named it.
        kind: the format of all files.
        tensors: by name in the files.
        shards: the files, in the order of their names.
        index: the file that says which file holds which tensor; None: there is one file.
        folder: whether the user named a folder.
    """

    given: Path
    kind: Literal["safetensors", "state dict"]
    tensors: Mapping[str, Tensor] = field(repr=False)
    shards: tuple[Shard, ...]
    index: Path | None = None
    folder: bool = False

    @property
    def spread(self) -> bool:
        """Whether what is written again is a folder: the weights came from one, or from several files."""
        return self.folder or self.index is not None

"""Writes new tensors in the form of the checkpoint that they come from: format, files, metadata, names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint.files.copies import write_again
from ...errors import CheckpointError
from ..whole_files import WholeFiles
from .checkpoint import Checkpoint, Shard

__all__ = ["log_scales_path", "places", "write_checkpoint", "write_json"]

_OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")


def log_scales_path(out: Path) -> Path:
    """Returns the file that keeps the log-scales of what is written to `out`."""
    return out.with_name(out.name + ".log_scales.json")


def places(checkpoint: Checkpoint, out: Path) -> dict[Path, Path]:
    """Returns by file of a checkpoint the file that is written in its place.

    Args:
        checkpoint: one file, which becomes the file `out`; or several, or one of a folder, which go into the folder `out`.
        out: where the user wants it.

    Raises:
        CheckpointError: `out` is a file where a folder is needed, or the other way round, or of another format.
    """
    if checkpoint.spread:
        if out.is_file() or out.suffix in _OF_WEIGHTS or out.suffix == ".json":
            raise CheckpointError(f"the weights of {checkpoint.given} are several files or a folder: {out} must be a folder")
        files = [shard.path for shard in checkpoint.shards] + ([checkpoint.index] if checkpoint.index else [])
        return {path: out / path.name for path in files}
    (shard,) = checkpoint.shards
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder: name the file to write")
    if (out.suffix == ".safetensors") != (checkpoint.kind == "safetensors"):
        raise CheckpointError(
            f"{checkpoint.given} is in the format {checkpoint.kind}, and so is what is written: "
            f"{out} must {'' if checkpoint.kind == 'safetensors' else 'not '}end in .safetensors"
        )
    return {shard.path: out}


def write_checkpoint(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], files: Mapping[Path, Path], whole: WholeFiles, companions: bool = False
) -> None:
    """Writes a checkpoint again with other values.

    Args:
        checkpoint: gives the form.
        tensors: by name in the checkpoint, the new values.
        files: as `places` returns them.
        whole: the context that puts the files in their places at its end.
        companions: whether configurations and other small files of the checkpoint's folder are copied too.
    """
    if checkpoint.spread:
        whole.folder(next(iter(files.values())).parent)
    write = _write_safetensors if checkpoint.kind == "safetensors" else _write_state_dict
    for shard in checkpoint.shards:
        write(shard, tensors, whole.beside(files[shard.path]))
    if checkpoint.index is not None:
        shutil.copyfile(checkpoint.index, whole.beside(files[checkpoint.index]))
    if companions:
        source, goal = checkpoint.shards[0].path.parent, next(iter(files.values())).parent
        for path in sorted(source.iterdir()):
            if path.is_file() and path.suffix not in _OF_WEIGHTS and not path.name.endswith((".index.json", ".log_scales.json")):
                shutil.copyfile(path, whole.beside(goal / path.name))


def write_json(path: Path, content: Mapping[str, Any], whole: WholeFiles) -> None:
    """Writes JSON without infinities and NaN."""
    whole.beside(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_safetensors(shard: Shard, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes one safetensors file: all but the values of its tensors as it is."""
    write_again(shard.path, path, {name: tensors[name] for name in shard.names})


def _write_state_dict(shard: Shard, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes one file of torch.save: the object that was read, with other tensors."""
    state = shard.content
    for key in shard.keys:
        state = state[key]
    for name in shard.names:
        state[name] = tensors[name].detach()
    torch.save(shard.content, path)

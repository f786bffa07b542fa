"""Reads files of weights: safetensors, with an index or without, and state dicts; no code of a pickle is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..targets.catalogues import quiet
from .checkpoint import Checkpoint, Shard

__all__ = ["find_weights", "read_checkpoint"]

_INNER = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Keys under which training programs keep the state dict beside other things."""

_NAMES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
"""Files of a folder of Transformers, the first that is there counts."""


def find_weights(folder: Path) -> Path | None:
    """Returns the file of weights, or the index of several, in a folder; None where there is none or more than one."""
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    return found[0] if len(found) == 1 else None


def read_checkpoint(given: str) -> Checkpoint:
    """Reads the weights of a file, of the files that an index names, or of a folder.

    Raises:
        CheckpointError: there is no such file, it holds something else, or a pickle with code.
    """
    path, folder = Path(given), Path(given).is_dir()
    if folder:
        found = find_weights(path)
        if found is None:
            raise CheckpointError(f"{given} is a folder without weights that could be meant: name the file, or its index")
        path = found
    if not path.is_file():
        raise CheckpointError(f"no such file: {given}")
    if path.suffix == ".json":
        return _sharded(Path(given), path, folder)
    tensors, shard = _read(path)
    return Checkpoint(Path(given), _kind(path), tensors, (shard,), None, folder)


def _sharded(given: Path, index: Path, folder: bool) -> Checkpoint:
    """Reads the files that an index names."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        if not files or any(Path(name).name != name for name in files):
            raise ValueError("its files are not beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights, which has a weight_map from tensors to files: {error}") from error
    tensors: dict[str, Tensor] = {}
    shards = []
    for name in files:
        path = index.parent / name
        if not path.is_file():
            raise CheckpointError(f"{index} names {name}, which is not beside it")
        own, shard = _read(path)
        wrong = sorted(set(own) ^ {tensor for tensor, place in places.items() if place == name})
        if wrong:
            raise CheckpointError(f"{index} and {path} do not agree on {_some(wrong)}: one of them belongs to another checkpoint")
        tensors |= own
        shards.append(shard)
    kinds = {_kind(shard.path) for shard in shards}
    if len(kinds) > 1:
        raise CheckpointError(f"{index} names files of two formats")
    return Checkpoint(given, kinds.pop(), tensors, tuple(shards), index, folder)


def _kind(path: Path) -> Any:
    """Returns the format of a file, by its ending."""
    return "safetensors" if path.suffix == ".safetensors" else "state dict"


def _read(path: Path) -> tuple[dict[str, Tensor], Shard]:
    """Returns the tensors of one file, and the rest of it."""
    return _safetensors(path) if _kind(path) == "safetensors" else _state_dict(path)


def _safetensors(path: Path) -> tuple[dict[str, Tensor], Shard]:
    """Reads a safetensors file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError("safetensors is not installed: pip install 'fxenorm[safetensors]'") from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors, Shard(path, tuple(tensors), metadata)


def _state_dict(path: Path) -> tuple[dict[str, Tensor], Shard]:
    """Reads a state dict, or what a training program keeps beside one."""
    content = _unpickled(path)
    found = content
    keys: tuple[str, ...] = ()
    while isinstance(found, Mapping) and not _is_state_dict(found):
        inner = next((key for key in _INNER if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            raise CheckpointError(
                f"{path} holds no state dict: its keys are {_some([str(key) for key in found])}; "
                f"expected names with tensors, alone or under one of {', '.join(_INNER)}"
            )
        found, keys = found[inner], (*keys, inner)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no state dict: save model.state_dict()")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    return tensors, Shard(path, tuple(tensors), None, content, keys)


def _unpickled(path: Path) -> Any:
    """Returns the object in a file that torch.save wrote, where reading it runs no code."""
    save = "save model.state_dict() with torch.save, or as safetensors"
    try:
        with quiet():  # torch warns of pickles of an unusual form, and refuses them then
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported" in str(error):
            raise CheckpointError(f"{path} is a pickle with code in it, which is not run: {save}") from error
        raise CheckpointError(f"{path} cannot be read as a state dict: {save}") from error
    except Exception as error:  # a file of any other kind makes torch fail in many ways
        raise CheckpointError(f"{path} cannot be read as a state dict ({type(error).__name__}): {save}") from error


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether most values are tensors by name; a few may be a module's extra state."""
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    return all(isinstance(name, str) for name in content) and tensors * 2 > len(content)


def _some(names: list[str]) -> str:
    """Returns the first few names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

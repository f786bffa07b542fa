"""Models of Transformers, built from a configuration on this machine; nothing is downloaded and no code of a folder is run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from .catalogues import quiet

__all__ = ["check_config", "from_config", "from_folder"]

_LARGE = 10**9
"""Entries beyond which random numbers would fill the memory for nothing."""


def check_config(place: str) -> Path:
    """Returns the configuration that a folder holds, or that was named itself.

    Raises:
        ModelFileError: there is none, it is no JSON object, or it asks for code of its own.
    """
    path = Path(place)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ModelFileError(f"hf:{place}: no file {path}: name a folder with a config.json, or the configuration itself")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelFileError(f"{path} is no configuration of Transformers: it has no model_type")
    if content.get("auto_map"):
        raise ModelFileError(
            f"{path} asks for code of its own (auto_map), which is not run: name a Python file that builds the model"
        )
    return path


def from_config(place: str, with_values: bool = False) -> Any:
    """Returns the model of a configuration: of the class that it names first, else of AutoModel's.

    Args:
        place: a folder with a config.json, or the configuration itself.
        with_values: whether even a model of more than a billion entries gets random weights; else it is on the meta device.

    Raises:
        ModelFileError: Transformers is not installed, or cannot build the model.
    """
    import torch

    path = check_config(place)
    with _building(path) as transformers:
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
        build = _builder(transformers, config)
        with torch.device("meta"):
            shapes = build(config)
        large = sum(parameter.numel() for parameter in shapes.parameters()) > _LARGE
        return shapes if large and not with_values else build(config)


def from_folder(place: str) -> Any:
    """Returns the model of a folder with its weights as Transformers reads them, which renames and joins some tensors.

    Raises:
        ModelFileError: Transformers cannot build the model, or the weights are not all there.
    """
    path = check_config(place)
    with _building(path) as transformers:
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
        (first, *_) = config.architectures or ["AutoModel"]
        kind = getattr(transformers, first, transformers.AutoModel)
        model, told = kind.from_pretrained(str(path.parent), local_files_only=True, dtype="auto", output_loading_info=True)
    missing = [*told["missing_keys"], *told["mismatched_keys"]]
    if missing:
        raise ModelFileError(
            f"the weights in {place} lack {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}"
        )
    return model


def _builder(transformers: Any, config: Any) -> Any:
    """Returns what builds a model from a configuration."""
    (first, *_) = config.architectures or [""]
    kind = getattr(transformers, first, None)
    return transformers.AutoModel.from_config if kind is None else kind


@contextlib.contextmanager
def _building(path: Path) -> Iterator[Any]:
    """Yields Transformers, kept quiet; makes one message of its errors."""
    try:
        with quiet():
            import transformers
    except ImportError as error:
        raise ModelFileError("transformers is not installed: pip install 'fxenorm[transformers]'") from error
    try:
        with quiet():
            yield transformers
    except Exception as error:  # of a library that may fail in any way on a configuration that it does not know
        raise ModelFileError(f"Transformers cannot build the model of {path}: {type(error).__name__}: {error}") from error

"""The model of a checkpoint without its weights: on the meta device."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError

__all__ = ["meta_model"]


def meta_model(given: Any, source: str | os.PathLike[str]) -> nn.Module:
    """Returns the model that a checkpoint belongs to.

    Args:
        given: a module (its weights are not read); a configuration of Transformers; a folder with a ``config.json``, or that
            file; None: the folder `source`.
        source: the checkpoint.

    Returns:
        The module as it is, or the configuration's class on the meta device, without a cache of keys and values.

    Raises:
        CheckpointError: there is no configuration, Transformers is not installed, or it cannot build the model.
    """
    if isinstance(given, nn.Module):
        return given
    config = _config(source if given is None else given)
    config = copy.deepcopy(config)
    config.use_cache = False
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("a configuration needs Transformers: pip install transformers, or pass the module") from error
    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or ()]
    kinds = [kind for kind in named if kind is not None]
    try:
        build: Any = kinds[0] if kinds else transformers.AutoModel.from_config
        with torch.device("meta"):
            model: nn.Module = build(config)
        return model
    except Exception as error:  # whatever the class says of its configuration
        raise CheckpointError(f"Transformers cannot build the model of {given or source}: {error}. Pass the module") from error


def _config(given: Any) -> Any:
    """Returns a configuration of Transformers."""
    if not isinstance(given, (str, os.PathLike)):
        if hasattr(given, "to_dict") and hasattr(given, "model_type"):
            return given
        raise CheckpointError(f"expected a module, a configuration of Transformers or a folder, got {type(given).__name__}")
    path = Path(given)
    path = path / "config.json" if path.is_dir() else path
    if (path.name != "config.json" and path.suffix != ".json") or not path.is_file():
        raise CheckpointError(f"no config.json for {given}: pass model_or_config, a module or a configuration")
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise CheckpointError("a config.json needs Transformers: pip install transformers, or pass the module") from error
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no configuration that Transformers knows: {error}") from error

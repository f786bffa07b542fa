"""Models of Transformers, built from a configuration on this machine; nothing is downloaded and no code of a folder is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from .catalogues import quiet

__all__ = ["check_config", "from_config"]


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


def from_config(place: str) -> Any:
    """Returns the model of a configuration with random weights: of the class that it names first, else of AutoModel's.

    Raises:
        ModelFileError: Transformers is not installed, or cannot build the model.
    """
    path = check_config(place)
    try:
        with quiet():
            import transformers
    except ImportError as error:
        raise ModelFileError("transformers is not installed: pip install 'fxenorm[transformers]'") from error
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
            (first, *_) = config.architectures or [""]
            kind = getattr(transformers, first, None)
            build: Any = transformers.AutoModel.from_config if kind is None else kind
            return build(config)
    except Exception as error:  # of a library that may fail in any way on a configuration that it does not know
        raise ModelFileError(f"Transformers cannot build the model of {path}: {type(error).__name__}: {error}") from error

"""From the command line's model argument to a module and its example inputs."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ModelFileError
from .input_spec import InputSpec
from .model_file import import_file, model_in, split_target

__all__ = ["Loaded", "check_target", "load"]

_TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Loaded:
    """A model, and its example inputs (None: to be guessed)."""

    model: Any
    example_inputs: Any
    example_kwargs: dict[str, Any] | None


def check_target(target: str) -> None:
    """Raises `ModelFileError` for a missing file before torch is imported."""
    if not target.startswith(_TORCHVISION):
        split_target(target)


def load(target: str, inputs: Sequence[InputSpec], seed: int) -> Loaded:
    """Builds the model that `target` names.

    Args:
        target: "path/to/model.py", "path/to/model.py:name" or "torchvision:name".
        inputs: positional example inputs; empty: the file's ``example_inputs`` and ``example_kwargs``, if any.
        seed: what torch's random numbers start from before the model is built.

    Raises:
        ModelFileError: the model cannot be found, imported or built.
    """
    import torch

    torch.manual_seed(seed)
    if target.startswith(_TORCHVISION):
        model, example_inputs, example_kwargs = _from_torchvision(target.removeprefix(_TORCHVISION)), None, None
    else:
        path, name = split_target(target)
        module = import_file(path)
        model = model_in(module, path, name)
        example_inputs, example_kwargs = getattr(module, "example_inputs", None), getattr(module, "example_kwargs", None)
    if inputs:
        example_inputs, example_kwargs = tuple(spec.tensor() for spec in inputs), None
    return Loaded(model, example_inputs, example_kwargs)


def _from_torchvision(name: str) -> Any:
    """Returns a model of torchvision with random weights; nothing is downloaded."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ModelFileError("torchvision is not installed: pip install 'fxenorm[vision]'") from error
    known = models.list_models()
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "torchvision.models.list_models() lists them"
        raise ModelFileError(f"torchvision has no model {name!r}: {hint}")
    # Detection and segmentation models download a pre-trained backbone unless told not to.
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    without_weights = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # about initialisation schemes of future versions
            return models.get_model(name, **without_weights)
    except ImportError as error:
        raise ModelFileError(f"torchvision cannot build {name!r}: {error}") from error

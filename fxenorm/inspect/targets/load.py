"""From the command line's model argument to a module and its example inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments.input_spec import InputSpec, as_arguments
from .catalogues import from_timm, from_torchvision
from .from_config import check_config, from_config
from .importing import import_file, import_module, search_folders
from .model_file import model_in
from .running import looking_in
from .target import CATALOGUES, Target, parse_target

__all__ = ["Loaded", "check_target", "load", "modules_findable"]

_BUILDERS = {"torchvision": from_torchvision, "timm": from_timm}


@dataclass(frozen=True)
class Loaded:
    """A model, and its example inputs (None: to be guessed)."""

    model: Any
    example_inputs: Any
    example_kwargs: dict[str, Any] | None


def check_target(target: str) -> Target:
    """Returns the target taken apart, before torch is imported.

    Raises:
        ModelFileError: there is no such file, module or configuration.
    """
    found = parse_target(target)
    if found.kind == "hf":
        check_config(found.place)
    return found


@contextlib.contextmanager
def modules_findable(target: Target) -> Iterator[None]:
    """Keeps the folders of a model's code on ``sys.path``, for imports that it does later."""
    folders, last = ((), None) if target.kind in CATALOGUES else search_folders(target.place, target.kind)
    with looking_in(*folders, last=last):
        yield


def load(target: str, inputs: Sequence[InputSpec], seed: int, with_values: bool = False) -> Loaded:
    """Builds the model that `target` names.

    Args:
        target: as `parse_target` reads it.
        inputs: example inputs; empty: the file's ``example_inputs`` and ``example_kwargs``, if any.
        seed: where torch's random numbers start before the model is built.
        with_values: whether the model is to have values however large it is; see `from_config`.

    Raises:
        ModelFileError: the model cannot be found, imported or built.
    """
    import torch

    found = check_target(target)
    torch.manual_seed(seed)
    example_inputs, example_kwargs = None, None
    if found.kind == "hf":
        model = from_config(found.place, with_values)
    elif found.kind in _BUILDERS:
        model = _BUILDERS[found.kind](found.place)
    else:
        module = import_file(Path(found.place)) if found.kind == "file" else import_module(found.place)
        with modules_findable(found):
            model = model_in(module, found.place, found.name, found.call)
        example_inputs, example_kwargs = getattr(module, "example_inputs", None), getattr(module, "example_kwargs", None)
    if inputs:
        example_inputs, example_kwargs = as_arguments(inputs)
    return Loaded(model, example_inputs, example_kwargs)

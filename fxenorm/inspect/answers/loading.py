"""A model with its weights: those of its file, random ones, or those of a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint.meta_model import meta_model
from ...errors import CheckpointError
from ..arguments.input_spec import as_arguments
from ..targets.from_config import from_folder
from ..targets.load import Loaded, load
from ..targets.target import CATALOGUES, Target

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

__all__ = ["Subject", "load_subject"]


@dataclass(frozen=True)
class Subject:
    """A model, and where its weights come from.

    Attributes:
        loaded: the model and its example inputs.
        checkpoint: the weights that were read from files; None: there are none.
        names: by name in the checkpoint, the name in the model.
        weights: the origin of the weights in words; "" where the model's own file knows it.
        streamed: a folder of weights that are balanced piece by piece and never all in memory; the model has none then.
    """

    loaded: Loaded
    checkpoint: Checkpoint | None
    names: Mapping[str, str]
    weights: str
    streamed: Path | None = None


def load_subject(arguments: argparse.Namespace, target: Target) -> Subject:
    """Builds the model, and gives it the weights of ``--weights``, or of the folder that it is built from.

    Raises:
        ModelFileError: the model cannot be built.
        CheckpointError: the weights cannot be read, or do not fit it.
    """
    from ..checkpoints.fit import fit
    from ..checkpoints.read import find_weights, read_checkpoint

    given = arguments.weights
    folder = Path(target.place) if target.kind == "hf" else None
    if given is None and folder is not None and folder.is_dir() and find_weights(folder) is not None:
        if _can_stream(arguments, folder):
            example_inputs, example_kwargs = as_arguments(arguments.input) if arguments.input else (None, None)
            shapes = Loaded(meta_model(None, folder), example_inputs, example_kwargs)
            return Subject(shapes, None, {}, f"weights of {folder}", folder)
        given = target.place
    if given is None and arguments.balance:
        raise CheckpointError("--balance writes the checkpoint that was read: name it with --weights FILE")
    if given is None:
        loaded = load(target.text, arguments.input, arguments.seed, with_values=bool(arguments.verify or arguments.bits))
        return Subject(loaded, None, {}, _origin(loaded.model, target))
    checkpoint = read_checkpoint(given)
    loaded = load(target.text, arguments.input, arguments.seed, with_values=True)
    try:
        names = fit(loaded.model, checkpoint)
        fitting = loaded if arguments.input else _in_its_type(loaded)
        return Subject(fitting, checkpoint, names, f"weights of {given}")
    except CheckpointError:
        if arguments.weights is not None or arguments.balance:
            raise
        renamed = Loaded(from_folder(target.place), loaded.example_inputs, loaded.example_kwargs)
        return Subject(renamed, None, {}, f"weights of {given}")


def _can_stream(arguments: argparse.Namespace, folder: Path) -> bool:
    """Whether all that is asked for can be done without all weights in memory: they are balanced, and not looked at else."""
    looked_at = arguments.verify or arguments.bits or arguments.html or arguments.undo or arguments.layer
    return bool(arguments.balance) and not looked_at and any(folder.glob("*.safetensors"))


def _in_its_type(loaded: Loaded) -> Loaded:
    """Returns the model with floating-point inputs of its file in the type that its weights have now."""
    import torch
    from torch.utils._pytree import tree_map

    kinds = {parameter.dtype for parameter in loaded.model.parameters() if parameter.is_floating_point()}
    if len(kinds) != 1:
        return loaded
    (kind,) = kinds

    def cast(leaf: Any) -> Any:
        """Returns a tensor of floating-point numbers in that type, all else as it is."""
        return leaf.to(kind) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return Loaded(loaded.model, tree_map(cast, loaded.example_inputs), tree_map(cast, loaded.example_kwargs))


def _origin(model: Any, target: Target) -> str:
    """Returns where the weights of a model come from that were not read from a file; "" where its own file knows it."""
    if target.kind not in CATALOGUES:
        return ""
    return "no weights" if any(parameter.is_meta for parameter in model.parameters()) else "random weights"

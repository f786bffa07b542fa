"""A model with its weights: those of its file, random ones, or those of a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import CheckpointError
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
    """

    loaded: Loaded
    checkpoint: Checkpoint | None
    names: Mapping[str, str]
    weights: str


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
        given = target.place
    if given is None and arguments.balance:
        raise CheckpointError("--balance writes the checkpoint that was read: name it with --weights FILE")
    checkpoint = None if given is None else read_checkpoint(given)
    loaded = load(target.text, arguments.input, arguments.seed)
    if checkpoint is None:
        return Subject(loaded, None, {}, "random weights" if target.kind in CATALOGUES else "")
    return Subject(loaded, checkpoint, fit(loaded.model, checkpoint), f"weights of {given}")

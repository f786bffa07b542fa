"""Models that other libraries know by a name: torchvision's and timm's, with random weights; nothing is downloaded."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import ModelFileError

__all__ = ["from_timm", "from_torchvision", "quiet"]


def from_torchvision(name: str) -> Any:
    """Returns a model of torchvision with random weights.

    Raises:
        ModelFileError: torchvision is not installed, has no such model, or cannot build it.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise ModelFileError("torchvision is not installed: pip install 'fxenorm[vision]'") from error
    known = models.list_models()
    if name.lower() not in known:
        raise _unknown("torchvision", name, known, "torchvision.models.list_models()")
    # Detection and segmentation models download a pre-trained backbone unless told not to.
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    without_weights = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    try:
        with quiet():
            return models.get_model(name, **without_weights)
    except ImportError as error:
        raise ModelFileError(f"torchvision cannot build {name!r}: {error}") from error


def from_timm(name: str) -> Any:
    """Returns a model of timm with random weights.

    Raises:
        ModelFileError: timm is not installed, has no such model, or cannot build it.
    """
    try:
        with quiet():
            import timm
    except ImportError as error:
        raise ModelFileError("timm is not installed: pip install 'fxenorm[timm]'") from error
    known = timm.list_models()
    plain, _, _ = name.partition(".")  # behind the dot stands the name of trained weights
    if plain not in known:
        raise _unknown("timm", name, known, "timm.list_models()")
    try:
        with quiet():
            return timm.create_model(plain, pretrained=False)
    except (ImportError, RuntimeError) as error:
        raise ModelFileError(f"timm cannot build {name!r}: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps a library's warnings back, most of them about future versions, and its prints off stdout."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def _unknown(library: str, name: str, known: Sequence[str], listing: str) -> ModelFileError:
    """Returns the error for a name that a library does not have; it lists near ones."""
    close = difflib.get_close_matches(name.lower(), known, n=5)
    hint = f"did you mean {', '.join(close)}?" if close else f"{listing} lists them"
    return ModelFileError(f"{library} has no model {name!r}: {hint}")

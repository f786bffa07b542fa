"""``--compare``: the distance of two checkpoints of one architecture, as they are and in canonical form."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

from ...plan.canonical import canonical
from .fit import fit
from .read import read_checkpoint

__all__ = ["compare", "compare_lines"]

Json = dict[str, Any]


def compare(model: nn.Module, one: str, other: str, inputs: Any, kwargs: dict[str, Any] | None, p: float) -> Json:
    """Returns how far two checkpoints are from each other.

    Args:
        model: their architecture; it is left as it is.
        one, other: files of weights.
        inputs, kwargs: example inputs, as `fxenorm.analyze` takes them.
        p: the exponent of the norm that the canonical form makes least.

    Returns:
        Distances of all parameters, relative to the norm of the first checkpoint's; and by layer the largest in canonical form.

    Raises:
        CheckpointError: a file cannot be read, or does not fit the model.
    """
    models = [copy.deepcopy(model), copy.deepcopy(model)]
    for made, file in zip(models, (one, other), strict=True):
        fit(made, read_checkpoint(file))
    before = _distances(*models)
    after = _distances(*(canonical(made, inputs, example_kwargs=kwargs, p=p) for made in models))
    layers = sorted(after, key=lambda name: -_relative([after[name]]))
    return {
        "files": [one, other],
        "distance": _relative(list(before.values())),
        "canonical_distance": _relative(list(after.values())),
        "farthest": [{"parameter": name, "distance": _relative([after[name]])} for name in layers[:5]],
    }


def compare_lines(found: Json) -> list[str]:
    """Returns the distances of `compare` in lines."""
    first, second = found["files"]
    farthest = ", ".join(f"{entry['parameter']} {entry['distance']:.2g}" for entry in found["farthest"][:3])
    return [
        f"distance between the parameters of {first} and {second}, relative to the norm of the first:",
        f"  as they are        {found['distance']:.3g}",
        f"  in canonical form  {found['canonical_distance']:.3g} (farthest: {farthest})",
        "  (the canonical form takes rescalings away; permutations and signs of channels remain)",
    ]


def _distances(one: nn.Module, other: nn.Module) -> dict[str, tuple[float, float]]:
    """Returns by parameter the squares of the distance and of the first one's norm."""
    seconds = dict(other.named_parameters())
    found = {}
    for name, first in one.named_parameters():
        ours, theirs = first.detach().double(), seconds[name].detach().double()
        found[name] = float((ours - theirs).square().sum()), float(ours.square().sum())
    return found


def _relative(squares: list[tuple[float, float]]) -> float:
    """Returns a distance relative to a norm; the distance itself where that norm is 0."""
    distance, norm = (math.sqrt(sum(part)) for part in zip(*squares, strict=True))
    return distance / norm if norm else distance

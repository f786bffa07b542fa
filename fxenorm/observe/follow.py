"""Brings observations to the weights as they are now, and refuses those of other weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import OptionError, StaleError
from ..symmetry.symmetry import Symmetry
from .landmarks import variables_of
from .observations import Observations

__all__ = ["followed"]


def followed(observations: Observations, symmetry: Symmetry, tensors: Mapping[str, Tensor], position: Tensor) -> Observations:
    """Returns observations as they are at the current weights; waits for the device.

    They follow by the rescalings that the plan has noted since. Where these do not lead to the weights, as with observations that
    were stored and are read beside another plan, they may belong to the weights as they are. Entries of all parameters decide.

    Args:
        observations: of this plan, or of another one with the same variables.
        symmetry: of the plan.
        tensors: the model's parameters, by name.
        position: (num_scales,) the sum of the plan's rescalings, float64 on the CPU.

    Raises:
        StaleError: they belong to other weights, or to a plan with other variables.
        OptionError: something else was given.
    """
    if not isinstance(observations, Observations):
        raise OptionError(f"observations={type(observations).__name__} is not valid: expected those of plan.observe")
    if observations.landmarks.variables != variables_of(symmetry):
        raise StaleError(
            f"the observations are of a plan with other variables ({observations.num_scales} of them, here "
            f"{symmetry.num_scales}, or of other tensors): call plan.observe on this plan"
        )
    since = position - observations.position
    ways = [since] if not bool(since.any()) else [since, torch.zeros_like(since)]
    differing: list[str] = []
    for way in ways:
        differing = observations.landmarks.differing(tensors, symmetry, observations.position + way)
        if not differing:
            return observations.rescaled(way) if bool(way.any()) else observations
    names = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
    raise StaleError(
        f"the observations are not of the weights as they are now: {names} changed by more than the plan's rescalings, as by "
        "training, plan.step, or a loaded checkpoint. Call plan.observe again; or, where another plan has rescaled the model, "
        "observations.rescaled(log_scales) first"
    )

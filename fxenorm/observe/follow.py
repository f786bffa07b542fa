"""Brings observations to the weights as they are now, and refuses those of other weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..distributed.agreement import ELSEWHERE
from ..distributed.ranks import Ranks
from ..errors import OptionError, StaleError
from ..symmetry.symmetry import Symmetry
from .landmarks import variables_of
from .observations import Observations

__all__ = ["followed"]


def followed(
    observations: Observations,
    symmetry: Symmetry,
    look: Callable[[], Mapping[str, Tensor]],
    position: Tensor,
    ranks: Ranks | None = None,
) -> Observations:
    """Returns observations as they are at the current weights; waits for the device.

    They follow by the rescalings that the plan has noted since. Where these do not lead to the weights, as with observations that
    were stored and are read beside another plan, they may belong to the weights as they are. Entries of all parameters decide.
    Of a model that is spread over processes, each looks at those it holds, and all come to the same answer, or all raise.

    Args:
        observations: of this plan, or of another one with the same variables.
        symmetry: of the plan.
        look: returns the model's parameters, by name.
        position: (num_scales,) the sum of the plan's rescalings, float64 on the CPU.
        ranks: the processes over which the model is spread; None: this one holds all.

    Raises:
        AgreementError: another process met an error.
        StaleError: they belong to other weights, or to a plan with other variables.
        OptionError: something else was given.
    """
    error: BaseException | None = None
    try:
        ways = _ways(observations, symmetry, look(), position, ranks)
    except BaseException as raised:  # whatever it is, the others wait
        if ranks is None:
            raise
        error = raised
    if ranks is not None:
        ranks.tell(error, f"{ELSEWHERE}; its own message says why (rank {{}})")
        ways = [(way, _of_all(observations.landmarks.names, differing, ranks)) for way, differing in ways]
    for way, differing in ways:
        if not differing:
            return observations.rescaled(way) if bool(way.any()) else observations
    differing = min((names for _, names in ways), key=len)
    names = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
    raise StaleError(
        f"the observations are not of the weights as they are now: {names} changed by more than the plan's rescalings, as by "
        "training, plan.step, or a loaded checkpoint. Call plan.observe again; or, where another plan has rescaled the model, "
        "observations.rescaled(log_scales) first"
    )


def _ways(
    observations: Observations, symmetry: Symmetry, tensors: Mapping[str, Tensor], position: Tensor, ranks: Ranks | None
) -> list[tuple[Tensor, list[str]]]:
    """Returns the rescalings that may lead to the weights, each with the names of the parameters to which it does not."""
    if not isinstance(observations, Observations):
        raise OptionError(f"observations={type(observations).__name__} is not valid: expected those of plan.observe")
    if observations.landmarks.variables != variables_of(symmetry):
        raise StaleError(
            f"the observations are of a plan with other variables ({observations.num_scales} of them, here "
            f"{symmetry.num_scales}, or of other tensors): call plan.observe on this plan"
        )
    since = position - observations.position
    ways = [since] if not bool(since.any()) and ranks is None else [since, torch.zeros_like(since)]
    landmarks, start = observations.landmarks, observations.position
    return [(way, landmarks.differing(tensors, symmetry, start + way, ranks)) for way in ways]


def _of_all(names: Sequence[str], differing: Sequence[str], ranks: Ranks) -> list[str]:
    """Returns those of some names that any process has found."""
    own = torch.tensor([float(name in differing) for name in names], dtype=torch.float64, device="cpu")
    found = ranks.largest(own).tolist() if names else []
    return [name for name, flag in zip(names, found, strict=True) if flag]

"""The range of the channels' norms in each layer, from sums that a solver has made already."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ..analysis.analysis import Analysis
from .objective import CurrentObjective

__all__ = ["channel_ranges"]


def channel_ranges(analysis: Analysis, objective: CurrentObjective, log_scales: Tensor | None) -> dict[str, tuple[float, float]]:
    """Returns, by layer, the smallest and the largest p-norm of a channel of its weight; p = inf: of a channel's range.

    The channels are those that it writes, or, where these have no scale, those that it reads.

    Args:
        analysis: of the plan.
        objective: at the current weights, of all counted tensors.
        log_scales: (K,) a rescaling, at which the objective was asked for its sums before; None: none.

    Returns:
        Positive numbers: channels of zeros are left out, layers of zeros too. Empty where processes hold parts of the weights.
    """
    if objective.sums.is_shared or not objective.program.blocks:
        return {}
    logs = objective.contributions(log_scales).double().cpu().numpy()
    power = 1.0 if math.isinf(objective.p) else objective.p
    found: dict[str, tuple[float, float]] = {}
    start = 0
    for item, block in zip(analysis.counted.tensors, objective.program.blocks, strict=True):
        if block.terms and block.collided is None and analysis.symmetry.roles.get(item.parameter) != "bias":
            side = logs[start : start + block.terms[0][1].numel()]
            side = side[np.isfinite(side)] / power
            if side.size:
                low, high = math.exp(side.min()), math.exp(side.max())
                before = found.get(item.layer, (low, high))
                found[item.layer] = (min(low, before[0]), max(high, before[1]))
        start += block.slots
    return found

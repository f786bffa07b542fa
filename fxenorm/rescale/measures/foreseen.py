"""`foreseen`: the report that `balance` would give, and the imbalance of every channel before and after, without a write."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...weights.objective import CurrentObjective
from ...weights.targets import Targets
from ...weights.weights import Weights
from ..balance import BalanceResult, solve_weights
from ..rescaler import Rescaler

__all__ = ["Foreseen", "foreseen"]


@dataclass(frozen=True)
class Foreseen:
    """The end that `balance` would come to.

    Attributes:
        result: its report.
        before, after: (num_scales,) float64 on the CPU: log(N_k / P_k) / p of each variable, as `Plan.channel_imbalance`.
    """

    result: BalanceResult
    before: Tensor
    after: Tensor


def foreseen(rescaler: Rescaler, *, tol: float, max_iterations: int) -> Foreseen:
    """Solves for the least norm as `balance` does, and leaves the weights as they are.

    Args:
        rescaler: a plan at work on its model, which one process holds.
        tol, max_iterations: as in `balance`.

    Raises:
        BindError: the model does not fit the plan.
    """

    def targets_of(weights: Weights) -> Targets:
        """Finds the tensors that would follow, of which none is written."""
        return weights.targets([], frozen=False, state="keep")

    with rescaler.lock:
        whole = rescaler.open_together()
        found, _ = solve_weights(whole, targets_of, tol=tol, max_iterations=max_iterations)
        result, objective = found.result, whole.objective()
        scales = result.log_scales.to(objective.held.device)
        return Foreseen(result, _imbalances(objective, None), _imbalances(objective, scales))


def _imbalances(objective: CurrentObjective, log_scales: Tensor | None) -> Tensor:
    """Returns log(N_k / P_k) / p of each variable after a rescaling."""
    negative, positive = objective.log_sums(log_scales)
    share = (negative - positive) / (1.0 if math.isinf(objective.p) else objective.p)
    return share.detach().to("cpu", torch.float64)

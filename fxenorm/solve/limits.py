"""Limits on log-scales on the way to an answer that knows none: what would pass its limit stops there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .jacobi import clamped
from .max_balance.entries import Floats, Mask

__all__ = ["Limited", "numbers", "within_limits"]

_MOST_LIMITS = 10
"""How often variables are put to their limits, or taken away from them, before the rest is left as it is."""


class Limited(Protocol):
    """A function of log-scales that may go so far."""

    @property
    def limit(self) -> Tensor:
        """(2, K) how far log-scales may go up and down; or (K,) for both."""

    @property
    def degree(self) -> Tensor:
        """(K,) any numbers, in the type and on the device of log-scales."""

    def log_sums(self, log_scales: Tensor, /) -> tuple[Tensor, Tensor]:
        """Returns (K,) log N and log P, the sides of the derivative."""


def within_limits(objective: Limited, start: Floats, free: Mask, answer: Callable[[Floats, Mask], Floats]) -> Floats:
    """Returns the (K,) log-scales of an answer of which those that would pass their limit stop there.

    Args:
        objective: with the limit.
        start: (K,) where to begin.
        free: (K,) the variables that may move.
        answer: from (K,) log-scales and the variables that move to the log-scales of these without a limit.
    """
    limit = (objective.limit if objective.limit.ndim == 2 else objective.limit.expand(2, -1)).to("cpu", torch.float64)
    up, down = limit[0].numpy(), -limit[1].numpy()
    log_scales, moving = start, free.copy()
    for _ in range(_MOST_LIMITS):
        found = answer(log_scales, moving)
        log_scales = np.clip(found, down, up) if moving.any() else found
        over = moving & ((found > up) | (found < down))
        stopped = free & ~moving & ~over
        if not over.any() and not stopped.any():
            break
        sums = objective.log_sums(torch.from_numpy(log_scales).to(objective.degree))
        negative, positive = (side.to("cpu", torch.float64).numpy() for side in sums)
        # At its limit a variable stays where its larger side pulls it out, and is let go where that pulls it back.
        inward = stopped & np.where(log_scales >= up, negative < positive, negative > positive)
        if not over.any() and not inward.any():
            break
        moving = (moving & ~over) | inward
    return clamped(torch.from_numpy(log_scales), limit).numpy()


def numbers(tensor: Tensor) -> Floats:
    """Returns a vector for numpy, in float64 on the CPU."""
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()

"""SGD: the momentum buffer is a sum of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import SGD

from .registry import power_of_present, register


@register(SGD)
def sgd_state(state: Mapping[str, Any]) -> dict[str, int]:
    """Momentum, dampened or not, Nesterov's too, becomes what rescaled gradients would have summed to: times 1 / D.

    Exact for the gradients' share. Coupled weight decay adds multiples of the weights to the buffer, and that share is
    rescaled like a gradient as well.
    """
    return power_of_present(state, {"momentum_buffer": -1})

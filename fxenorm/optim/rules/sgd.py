"""SGD and Muon: the momentum buffer is a sum of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import Follows, power_of_present, register


@register("SGD")
def sgd_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Momentum times 1 / D, dampened or not, Nesterov's too: the sum of the rescaled gradients.

    Exact for the gradients' share. Coupled weight decay adds multiples of the weights to the buffer, and that share is
    rescaled like a gradient as well.
    """
    return power_of_present(state, {"momentum_buffer": -1})


@register("Muon")
def muon_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Momentum as SGD's; its weight decay is decoupled. The orthogonalised update itself follows no diagonal rescaling."""
    return power_of_present(state, {"momentum_buffer": -1})

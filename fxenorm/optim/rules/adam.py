"""The Adam family: first moments follow as gradients, second moments as their squares, whatever the bias correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import Follows, power_of_present, register


@register("Adam")
@register("AdamW")
@register("NAdam")
@register("RAdam")
@register("SparseAdam")
def adam_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """First moments times 1 / D, second moments (AMSGrad's largest one too) times 1 / D^2; counters stay.

    Exact with decoupled weight decay (AdamW, ``decoupled_weight_decay=True``) or none. Coupled weight decay (``weight_decay`` of
    the others) adds multiples of the weights to the moments, and that share is rescaled like a gradient as well. eps is not.
    """
    return power_of_present(state, {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2})


@register("Adamax")
def adamax_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """First moments and the running maximum of |gradient| times 1 / D; exact up to the eps inside that maximum."""
    return power_of_present(state, {"exp_avg": -1, "exp_inf": -1})

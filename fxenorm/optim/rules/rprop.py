"""Rprop: a step size for every entry, in the weights' own units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import Follows, Steps, power_of_present, register


@register("Rprop", contract="covariant")
def rprop_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Step sizes times D, the previous gradient times 1 / D; covariant as long as ``step_sizes`` do not clamp."""
    return power_of_present(state, {"step_size": Steps(), "prev": -1})

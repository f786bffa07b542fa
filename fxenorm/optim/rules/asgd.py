"""ASGD: an average of the weights is kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import Follows, power_of_present, register


@register("ASGD", contract="by definition")
def asgd_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The averaged weights follow as the weights, times D: they are the average of the rescaled iterates, exactly."""
    return power_of_present(state, {"ax": 1})

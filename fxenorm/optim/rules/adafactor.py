"""Adafactor: second moments kept as row and column means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import Factor, Follows, power_of_present, register


@register("Adafactor", contract="by definition")
def adafactor_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The second moments that rows and columns stand for, row * column / mean(row), times 1 / D^2, exactly.

    D must be a product of a factor for rows and one for columns, which it is in linear and convolution layers. The row and
    column means of a fresh optimizer would differ, since they mix entries with different D; and the step size grows with
    the norm of the weights, which a rescaling changes.
    """
    rows = Factor(-2, axis=-1, other="col_var")
    columns = Factor(-2, axis=-2, other="row_var")
    return power_of_present(state, {"row_var": rows, "col_var": columns, "variance": -2})

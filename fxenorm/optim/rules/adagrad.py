"""Adagrad, RMSprop, Adadelta: accumulated squares of gradients.

Their ``weight_decay`` is coupled: multiples of the weights are in what accumulates, and are rescaled as if they were gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import Follows, power_of_present, register


@register("Adagrad")
def adagrad_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The sum of squares times 1 / D^2: exact for ``initial_accumulator_value=0``; another start is rescaled with the sum."""
    return power_of_present(state, {"sum": -2})


@register("RMSprop")
def rmsprop_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The mean square times 1 / D^2, the mean gradient of ``centered`` times 1 / D.

    ``momentum_buffer`` stays: it holds gradients over their own root mean square, which no rescaling changes.
    """
    return power_of_present(state, {"square_avg": -2, "grad_avg": -1, "momentum_buffer": 0})


@register("Adadelta", contract="covariant")
def adadelta_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The mean square of gradients times 1 / D^2, that of the steps times D^2: steps follow as the weights do.

    Covariant where the accumulated steps outweigh eps, which is not so in the first steps with torch's default eps.
    """
    return power_of_present(state, {"square_avg": -2, "acc_delta": 2})

"""LBFGS: flat vectors over all parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import Flat, Follows, power_of_present, register


@register("LBFGS", contract="by definition")
def lbfgs_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The curvature pairs become those of the rescaled problem, exactly: steps times D, changes of the gradient times 1 / D.

    What the history does not say is taken from a multiple of the identity as initial Hessian. That one does not follow, so
    later steps are not D times those of a run that was never rescaled.
    """
    steps, gradients = Flat(1), Flat(-1)
    return power_of_present(state, {"d": steps, "old_stps": steps, "old_dirs": gradients, "prev_flat_grad": gradients})

"""Optimizer state that belongs to several entries at once: its parts do not follow their own."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from ..errors import OptimizerError
from .wrappers import own_state, rules_for

__all__ = ["refuse_joint_state"]


def refuse_joint_state(optimizers: Sequence[Optimizer]) -> None:
    """Raises an OptimizerError where an optimizer of a model that is spread over processes keeps such state."""
    for optimizer in optimizers:
        rules = rules_for(optimizer, optimizers)
        members = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
        for parameter, group in members:
            state = own_state(optimizer).get(parameter)
            found = [item for rule in rules for item in rule.follows(state, group).items()] if state else []
            joint = [key for key, follows in found if not isinstance(follows, int)]
            if joint:
                raise OptimizerError(
                    f"{type(optimizer).__name__} keeps {joint[0]!r}, which sums up many entries, and the model is spread over "
                    "processes: nothing was rescaled. Pass state='reset' to drop that state, state='keep' to leave it, or use "
                    "an optimizer whose state has the parameters' shape"
                )

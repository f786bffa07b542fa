"""Optimizers around optimizers: Accelerate's and Lightning's, which hold nothing, and Lookahead, which holds slow weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from ..errors import OptimizerError
from .registry import Rule, find_rule

__all__ = ["adds_state", "held_by", "own_state", "rules_for"]

_ATTRIBUTES = ("_base_optimizer", "base_optimizer", "base")
"""Under which wrappers keep the optimizer, beside ``optimizer``."""


def held_by(wrapper: Any) -> Any:
    """Returns the optimizer, or the wrapper, inside a wrapper; None for other objects."""
    held = getattr(wrapper, "optimizer", None)
    if held is not None:
        return held
    found = (getattr(wrapper, name, None) for name in _ATTRIBUTES)
    return next((one for one in found if isinstance(one, Optimizer)), None)


def own_state(optimizer: Any) -> Mapping[Any, Any]:
    """Returns the state that an optimizer holds by itself; a wrapper that shows the state of the optimizer in it has none."""
    state: Any = getattr(optimizer, "state", None)
    return state if isinstance(state, Mapping) and not _shares_state(optimizer) else {}


def _shares_state(wrapper: Any) -> bool:
    """Whether a wrapper shows the state of the optimizer in it; one of the same class, as Lightning's, does, if an older one."""
    held = held_by(wrapper)
    return held is not None and (wrapper.state is getattr(held, "state", None) or isinstance(wrapper, type(held)))


def adds_state(wrapper: Any) -> bool:
    """Whether a wrapper keeps state: of its own, or, by its rule, in that of the optimizer in it."""
    if not (hasattr(wrapper, "param_groups") and hasattr(wrapper, "state")):
        return False
    return not _shares_state(wrapper) or (_rule(wrapper) is not None and not isinstance(wrapper, type(held_by(wrapper))))


def rules_for(optimizer: Any, optimizers: Sequence[Any]) -> list[Rule]:
    """Returns the rules for the state that an optimizer holds: its own, and those of the wrappers around it.

    Args:
        optimizer: one of `optimizers`.
        optimizers: as `unwrap_optimizers` returns them.

    Raises:
        OptimizerError: there is none; of a wrapper, only if it does hold state.
    """
    if held_by(optimizer) is not None:
        return [find_rule(optimizer)] if own_state(optimizer) else []
    around = [_rule(other) for other in optimizers if other is not optimizer and _innermost(other) is optimizer]
    return [find_rule(optimizer), *(rule for rule in around if rule is not None)]


def _innermost(wrapper: Any) -> Any:
    """Returns the optimizer inside all wrappers around it."""
    seen: set[int] = set()
    while held_by(wrapper) is not None and id(wrapper) not in seen:
        seen.add(id(wrapper))
        wrapper = held_by(wrapper)
    return wrapper


def _rule(wrapper: Any) -> Rule | None:
    """Returns the rule of a wrapper's class, if there is one."""
    try:
        return find_rule(wrapper)
    except OptimizerError:
        return None

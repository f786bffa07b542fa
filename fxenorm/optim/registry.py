"""State rules by optimizer class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..errors import OptimizerError

__all__ = ["StateRule", "find_rule", "register", "supported_optimizers"]

StateRule = Callable[[Mapping[str, Any]], Mapping[str, int]]
"""From one parameter's state to the power of the parameter's factor D that each of its tensors is multiplied by."""

_RULES: dict[type[Optimizer], StateRule] = {}

_ADVICE = "Use {}, or rescale without an optimizer: its state then stays as it is, which suits an empty or reset state only"

_METHODS_THAT_MATTER = ("step", "_init_group")
"""What decides which gradients enter the state, and how."""


def register(cls: type[Optimizer]) -> Callable[[StateRule], StateRule]:
    """Decorator: makes a function the rule of an optimizer class."""

    def keep(rule: StateRule) -> StateRule:
        _RULES[cls] = rule
        return rule

    return keep


def supported_optimizers() -> list[str]:
    """Names of the classes that have a rule."""
    return sorted(f"{cls.__module__.rpartition('.')[0]}.{cls.__name__}" for cls in _RULES)


def find_rule(optimizer: Optimizer) -> StateRule:
    """The rule for an optimizer: that of its class, or of the base class whose update it uses unchanged.

    Args:
        optimizer: any optimizer; keys of its state are never looked at, for one key means different things in different classes.

    Returns:
        The rule.

    Raises:
        OptimizerError: neither its class nor a base class that it leaves unchanged has one.
    """
    cls = type(optimizer)
    for base in cls.__mro__:
        rule = _RULES.get(base)
        if rule is None:
            continue
        changed = [name for name in _METHODS_THAT_MATTER if _function(cls, name) is not _function(base, name)]
        if not changed:
            return rule
        raise OptimizerError(
            f"{_named(cls)} derives from {_named(base)} but has its own {' and '.join(changed)}: whether its state follows a "
            f"rescaling as {base.__name__}'s does cannot be known. {_ADVICE.format(base.__name__)}"
        )
    raise OptimizerError(
        f"no rule says how the state of {_named(cls)} follows a rescaling of its parameters. "
        f"{_ADVICE.format(' or '.join(supported_optimizers()))}"
    )


def _function(cls: type, name: str) -> object:
    """A method without the wrappers that torch puts around it when the first instance is made."""
    method = getattr(cls, name, None)
    return inspect.unwrap(method) if callable(method) else method


def _named(cls: type) -> str:
    """A class with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def power_of_present(state: Mapping[str, Any], powers: Mapping[str, int]) -> dict[str, int]:
    """The entries of `powers` whose state exists; None stands for state that has not been made yet."""
    return {key: power for key, power in powers.items() if isinstance(state.get(key), Tensor)}

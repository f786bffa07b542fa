"""The tables of state rules: how the state of each optimizer class follows a rescaling."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import OptimizerError, OptionError

__all__ = [
    "Contract",
    "Factor",
    "Flat",
    "Follows",
    "Rule",
    "StateRule",
    "Steps",
    "find_rule",
    "power_of_present",
    "register",
    "register_optimizer",
    "registered",
    "registered_names",
    "supported_optimizers",
]

Contract = Literal["re-expressed", "covariant", "by definition"]
"""The promise of a rule, D being the parameter's factor.

"re-expressed": the state is that of a fresh optimizer that was fed the rescaled gradients from the start.
"covariant": later updates are D times those of the run that was never rescaled.
"by definition": what the state stands for is rescaled exactly; the rule says what that is.
"""


@dataclass(frozen=True)
class Factor:
    """One of two small tensors whose product over the mean of one stands for a tensor of the parameter's shape.

    Attributes:
        power: of D, for that product.
        axis: the one of the last two axes along which this factor is constant (size 1).
        other: key of the other factor.
        drops_axis: whether the tensor lacks that axis.
    """

    power: int
    axis: Literal[-1, -2]
    other: str
    drops_axis: bool = False

    def full(self, tensor: Tensor) -> Tensor:
        """Returns the factor as a view that has all axes."""
        return tensor.unsqueeze(self.axis) if self.drops_axis else tensor


@dataclass(frozen=True)
class Flat:
    """A tensor, or a list of tensors, that holds a value for every entry of every parameter, one parameter after the other."""

    power: int


@dataclass(frozen=True)
class Steps:
    """A tensor of the parameter's shape that holds differences of the parameter's values: steps, step sizes.

    A parameter that the model uses as a constant plus itself moves by more than a factor; its steps do not.
    """

    power: int = 1


Follows = int | Steps | Factor | Flat
"""How a state tensor follows: times D to a power (the parameter's shape; 1: as the parameter itself), or as described above."""

StateRule = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Follows]]
"""From one parameter's state and its group to how each tensor of the state follows; what is not named stays as it is."""


@dataclass(frozen=True)
class Rule:
    """The rule by which the state of an optimizer class follows its parameters.

    Attributes:
        follows: the rule itself.
        contract: its promise.
        keys: the state keys that a rule given as a dict names; empty for a function.
    """

    follows: StateRule
    contract: Contract
    keys: frozenset[str] = frozenset()


_RULES: dict[type[Optimizer], Rule] = {}

_NAMED: dict[str, Rule] = {}
"""By module and name of a class of a library that may not be installed."""

_CHOICES = (
    "Pass state='reset' to drop the state of what is rescaled, or state='keep' to leave it (which suits empty state only), or "
    "tell how it follows with fxenorm.register_optimizer({}, rule)"
)

_METHODS_THAT_MATTER = ("step", "_init_group")
"""Methods that decide which gradients enter the state, and how."""


def register(*names: str, contract: Contract = "re-expressed", replace: bool = False) -> Callable[[StateRule], StateRule]:
    """Decorator: makes a function the rule of optimizer classes that are known by name.

    Args:
        names: "Adam" for a class of ``torch.optim``, passed over if the installed torch lacks it; module and name for a class
            of a library that may not be installed, as "timm.optim.lion.Lion".
        contract: the promise of the rule.
        replace: whether a rule that one of the classes has already gives way.

    Raises:
        OptionError: one of the classes has a rule already and `replace` is False.
    """

    def keep(rule: StateRule) -> StateRule:
        for name in names:
            key = name if "." in name else getattr(torch.optim, name, None)
            if key is not None:
                _add(key, Rule(rule, contract), replace)
        return rule

    return keep


def _add(key: type[Optimizer] | str, rule: Rule, replace: bool) -> None:
    """Puts a rule into the table of classes or, by name, into that of other libraries' classes."""
    if not replace and (key in _NAMED or key in _RULES):
        raise OptionError(f"there is a rule for {key if isinstance(key, str) else _named(key)} already")
    if isinstance(key, str):
        _NAMED[key] = rule
    else:
        _RULES[key] = rule


def register_optimizer(
    cls: type[Optimizer], rule: StateRule | Mapping[str, int | Literal["steps"]], *, contract: Contract = "re-expressed"
) -> None:
    """Tells how the state of an optimizer class follows when its parameters are rescaled, theta <- D * theta.

    Args:
        cls: the class; it also serves subclasses that leave ``step`` as it is. A rule that is there already is replaced.
        rule: a dict from state keys to powers of D: -1 for what sums gradients, -2 for what sums their squares, +1 for what is
            in the parameter's own units (averages, slow weights), "steps" for differences of such values (step sizes), 0 for
            what stays as it is. Every float tensor of the parameter's shape has to be named, and every key has to occur. Or a
            function of one parameter's state and its group that returns such a dict, with ``Steps()`` for "steps". Tensors
            have the parameter's shape.
        contract: the promise of the rule: "re-expressed", the state is that of a fresh optimizer fed the rescaled gradients;
            "covariant", later updates are D times what they would have been; "by definition", anything else.

    `fxenorm.check_optimizer` tests a rule.

    Raises:
        OptionError: `cls` is no optimizer class, `rule` is neither a dict of integers nor a function, or `contract` is unknown.

    Example:
        >>> class Lion(torch.optim.Optimizer):
        ...     '''Steps by the sign of a running mean of gradients, kept as "exp_avg".'''
        >>> register_optimizer(Lion, {"exp_avg": -1})
        >>> find_rule(Lion([torch.nn.Parameter(torch.ones(1))], {})).contract
        're-expressed'
        >>> class ScheduleFreeAdamW(torch.optim.Optimizer):
        ...     '''Keeps the fast iterate "z", in the weights' own units, and second moments "exp_avg_sq".'''
        >>> register_optimizer(ScheduleFreeAdamW, {"z": 1, "exp_avg_sq": -2}, contract="by definition")
    """
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise OptionError(f"cls={cls!r} is not valid: expected a class that derives from torch.optim.Optimizer")
    if contract not in get_args(Contract):
        listed = ", ".join(repr(choice) for choice in get_args(Contract))
        raise OptionError(f"contract={contract!r} is not valid: expected one of {listed}")
    if isinstance(rule, Mapping):
        if not all(isinstance(key, str) and (type(power) is int or power == "steps") for key, power in rule.items()):
            raise OptionError(f"rule={rule!r} is not valid: expected state keys with integer powers, as {{'exp_avg': -1}}")
        powers: dict[str, Follows] = {key: power if isinstance(power, int) else Steps() for key, power in rule.items()}
        found = Rule(lambda state, group: power_of_present(state, powers), contract, frozenset(powers))
    elif callable(rule):
        found = Rule(rule, contract)
    else:
        raise OptionError(f"rule={rule!r} is not valid: expected a dict of integer powers by state key, or a function")
    _add(cls, found, replace=True)


def registered() -> dict[type[Optimizer], Rule]:
    """Returns a copy of the table of rules, by optimizer class."""
    return dict(_RULES)


def registered_names() -> dict[str, Rule]:
    """Returns a copy of the table of rules of classes that are known by module and name."""
    return dict(_NAMED)


def supported_optimizers() -> list[str]:
    """Returns the names of the classes that have a rule, torch's own first."""
    own = {cls for cls in _RULES if cls.__module__.startswith("torch.optim")}
    others = {*(_named(cls) for cls in _RULES if cls not in own), *_NAMED}
    return [*sorted(f"torch.optim.{cls.__name__}" for cls in own), *sorted(others)]


def find_rule(optimizer: Any) -> Rule:
    """Returns the rule for an optimizer: that of its class, or of the base class whose update it uses unchanged.

    Args:
        optimizer: any optimizer; keys of its state are never looked at, for one key means different things in different classes.

    Returns:
        The rule.

    Raises:
        OptimizerError: neither its class nor a base class that it leaves unchanged has one.
    """
    cls = type(optimizer)
    choices = _CHOICES.format(cls.__name__)
    for base in cls.__mro__:
        rule = _RULES.get(base) or _NAMED.get(_named(base))
        if rule is None:
            continue
        changed = [name for name in _METHODS_THAT_MATTER if _function(cls, name) is not _function(base, name)]
        if not changed:
            return rule
        raise OptimizerError(
            f"{_named(cls)} derives from {_named(base)} but has its own {' and '.join(changed)}: whether its state follows a "
            f"rescaling as {base.__name__}'s does cannot be known. {choices}"
        )
    raise OptimizerError(
        f"no rule says how the state of {_named(cls)} follows a rescaling of its parameters: nothing was rescaled. {choices}. "
        f"There are rules for {len(supported_optimizers())} classes, {_nearest(cls)} among them; the reference lists all"
    )


def _nearest(cls: type) -> str:
    """Returns the names of the classes with a rule that are nearest to that of a class; of two others where none is near."""
    known = supported_optimizers()
    near = set(difflib.get_close_matches(cls.__name__, [name.rpartition(".")[2] for name in known], n=3, cutoff=0.6))
    found = [name for name in known if name.rpartition(".")[2] in near]
    return ", ".join(found or ["torch.optim.SGD", "torch.optim.AdamW"])


def _function(cls: type, name: str) -> object:
    """Returns a method without the wrappers that torch puts around it when the first instance is made."""
    method = getattr(cls, name, None)
    return inspect.unwrap(method) if callable(method) else method


def _named(cls: type) -> str:
    """Returns the name of a class with its module, "torch.optim.sgd.SGD"."""
    return f"{cls.__module__}.{cls.__qualname__}"


def power_of_present(state: Mapping[str, Any], powers: Mapping[str, Follows]) -> dict[str, Follows]:
    """Returns the entries of `powers` whose state exists; None and an empty list stand for state that has not been made yet."""
    return {key: power for key, power in powers.items() if isinstance(state.get(key), Tensor) or state.get(key)}

"""The state tensors that follow a rescaling, found and checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import OptimizerError, OptionError
from .registry import Factor, Flat, Rule, Steps
from .wrappers import adds_state, held_by, own_state, rules_for

__all__ = [
    "OptimizerLike",
    "StateChoice",
    "StateTensor",
    "check_choice",
    "owned_by",
    "reset_state",
    "state_tensors",
    "strange_keys",
    "unnamed_keys",
    "unwrap_optimizers",
]

OptimizerLike = Any
"""An optimizer, something that holds one as ``.optimizer``, a sequence of these, or None."""

StateChoice = Literal["reexpress", "reset", "keep"]
"""The choices for optimizer state: it follows by its class's rule, is dropped, or stays as it is."""


@dataclass(frozen=True)
class StateTensor:
    """One tensor of an optimizer's state, or the part of a flat one that belongs to one parameter.

    Attributes:
        parameter: name of the parameter that it belongs to.
        key: its key in the state.
        tensor: the tensor, of the parameter's shape, but for factors.
        power: it is multiplied by the parameter's factor D to this power.
        factor: where it is one of two factors, which; the tensor's shape is then 1 along ``factor.axis``.
        other: the other factor.
        in_list: whether it is part of state that is kept in lists, which change without the state's entry changing.
        position: whether it stands for values of the parameter (an average), rather than for steps or gradients.
    """

    parameter: str
    key: str
    tensor: Tensor
    power: int
    factor: Factor | None = None
    other: Tensor | None = None
    in_list: bool = False
    position: bool = False


def check_choice(state: str) -> None:
    """Raises an OptionError unless `state` is one of the choices."""
    if state not in get_args(StateChoice):
        raise OptionError(f"state={state!r} is not valid: expected 'reexpress', 'reset' or 'keep'")


def unwrap_optimizers(optimizer: OptimizerLike) -> tuple[Optimizer, ...]:
    """Returns the torch optimizers in a user's argument, each once.

    Args:
        optimizer: an optimizer, a wrapper with ``.optimizer``, a sequence of them, or None.

    Returns:
        The innermost optimizers, each followed by the wrappers around it that hold state of their own; empty for None.

    Raises:
        OptimizerError: something in there is no optimizer and holds none.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> [type(found).__name__ for found in unwrap_optimizers([torch.optim.SGD([weight], lr=0.1)])]
        ['SGD']
    """
    if optimizer is None:
        return ()
    if isinstance(optimizer, (list, tuple)):
        found: dict[int, Optimizer] = {}
        for member in optimizer:
            found.update((id(inner), inner) for inner in unwrap_optimizers(member))
        return tuple(found.values())
    inner: Any = optimizer
    seen: set[int] = set()
    # Accelerate's wrapper is an Optimizer itself, so the attribute decides, not the class.
    around: list[Any] = []
    while held_by(inner) is not None and id(inner) not in seen:
        seen.add(id(inner))
        around.append(inner)
        inner = held_by(inner)
    if not isinstance(inner, Optimizer):
        raise OptimizerError(
            "expected a torch.optim.Optimizer, a wrapper that holds one as .optimizer, a sequence of them, or None; "
            f"got {type(optimizer).__name__}"
        )
    return (inner, *filter(adds_state, around))


def owned_by(optimizers: Iterable[Optimizer]) -> set[int]:
    """Returns the ids of all parameters in the optimizers' groups."""
    return {id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}


def state_tensors(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> list[StateTensor]:
    """Finds every state tensor that follows one of the parameters; writes nothing.

    State is looked up at each call, for ``load_state_dict`` replaces it. Parameters without state yet are passed over.

    Args:
        optimizers: as `unwrap_optimizers` returns them.
        parameters: by name, the parameters that are rescaled, as the optimizers hold them.

    Returns:
        The tensors with their powers.

    Raises:
        OptimizerError: an optimizer has no rule, or holds state of another shape, type or layout.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: list[StateTensor] = []
    for optimizer in optimizers:
        states, rules = own_state(optimizer), rules_for(optimizer, optimizers)
        if rules and held_by(optimizer) is None:
            _refuse_strange_keys(optimizer, rules[0].keys)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = states.get(parameter)
                if not state:
                    continue
                name = names.get(id(parameter))
                powers = {key: follows for rule in reversed(rules) for key, follows in _answer(optimizer, rule, state, group)}
                if name is not None:
                    _refuse_unnamed(optimizer, name, parameter, state, powers)
                for key, follows in powers.items():
                    if type(follows) is int and follows == 0:
                        continue
                    if isinstance(follows, Flat):
                        found.extend(_flat(optimizer, key, state[key], follows.power, names))
                    elif name is not None:
                        found.append(_checked(optimizer, name, parameter, key, follows, state))
    return found


def _answer(optimizer: Optimizer, rule: Rule, state: Mapping[str, Any], group: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Returns how each state tensor follows; raises an OptimizerError where a registered function fails."""
    try:
        return list(rule.follows(state, group).items())
    except Exception as error:  # the function is a user's
        raise OptimizerError(
            f"the rule for {type(optimizer).__name__} failed on a state of {', '.join(map(repr, state))}: "
            f"{type(error).__name__}: {error}: nothing was rescaled. Correct it with fxenorm.register_optimizer"
        ) from error


def _refuse_strange_keys(optimizer: Optimizer, keys: frozenset[str]) -> None:
    """Raises where a registered rule names a key that no state of this optimizer has."""
    states = [state for state in optimizer.state.values() if isinstance(state, dict) and state]
    strange = strange_keys(optimizer, keys)
    if strange:
        present = ", ".join(repr(key) for key in dict.fromkeys(key for state in states for key in state))
        raise OptimizerError(
            f"the rule for {type(optimizer).__name__} names {', '.join(map(repr, strange))}, but its state has "
            f"{present}: nothing was rescaled. Correct it with fxenorm.register_optimizer"
        )


def strange_keys(optimizer: Optimizer, keys: frozenset[str]) -> list[str]:
    """Returns those of the keys that no state of this optimizer has, once it has state."""
    states = [state for state in optimizer.state.values() if isinstance(state, dict) and state]
    return sorted(key for key in keys if states and not any(key in state for state in states))


def _refuse_unnamed(
    optimizer: Optimizer, name: str, parameter: Tensor, state: Mapping[str, Any], powers: Mapping[str, Any]
) -> None:
    """Raises where the rule says nothing of a float tensor of the parameter's shape."""
    for key in unnamed_keys(parameter, state, powers):
        raise OptimizerError(
            f"the rule for {type(optimizer).__name__} says nothing of {key!r}, a float tensor of the shape of {name!r}: nothing "
            "was rescaled. If a wrapper around this optimizer put it there, pass the wrapper. Else name it with "
            "fxenorm.register_optimizer: -1 for what sums gradients, -2 for what sums their squares, 1 for what is in the "
            "parameter's own units, 0 for what stays as it is"
        )


def unnamed_keys(parameter: Tensor, state: Mapping[str, Any], powers: Mapping[str, Any]) -> list[str]:
    """Returns the keys of float tensors of the parameter's shape of which a rule says nothing."""

    def could_follow(value: Any) -> bool:
        """Whether a state is such a tensor."""
        floats = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        return floats and parameter.ndim > 0 and value.shape == parameter.shape

    return [key for key, value in state.items() if key not in powers and could_follow(value)]


def reset_state(optimizers: Iterable[Optimizer], parameters: Iterable[Tensor]) -> None:
    """Drops the state of the given parameters, as if they had never been stepped; flat state is dropped whole.

    What a wrapper holds apart from the optimizer in it is no history of gradients, and follows instead.
    """
    moved = {id(parameter) for parameter in parameters}
    for optimizer in optimizers:
        if held_by(optimizer) is not None:
            continue
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not any(id(parameter) in moved for parameter in held):
            continue
        for parameter in held:
            # LBFGS keeps the history of all its parameters with the first of them.
            if id(parameter) in moved or isinstance(optimizer, torch.optim.LBFGS):
                optimizer.state.pop(parameter, None)


def _checked(
    optimizer: Optimizer, name: str, parameter: Tensor, key: str, follows: int | Steps | Factor, state: Mapping[str, Any]
) -> StateTensor:
    """Returns one state tensor of a parameter, of the shape that its rule expects."""
    shape = list(parameter.shape)
    if isinstance(follows, Factor):
        shape[follows.axis] = 1
    tensor = state[key]
    if isinstance(follows, Factor) and follows.drops_axis:
        del shape[follows.axis]
    _check_form(optimizer, name, key, tensor, tuple(shape))
    if isinstance(follows, Factor):
        other: Any = state.get(follows.other)
        if other is not None and follows.drops_axis:
            other = other.unsqueeze(-3 - follows.axis)
        return StateTensor(name, key, follows.full(tensor), follows.power, follows, other)
    if isinstance(follows, Steps):
        return StateTensor(name, key, tensor, follows.power)
    return StateTensor(name, key, tensor, follows, position=follows == 1)


def _flat(optimizer: Optimizer, key: str, value: Any, power: int, names: Mapping[int, str]) -> Iterator[StateTensor]:
    """Yields the parts of flat state that belong to rescaled parameters, as views of the parameters' shapes."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total = sum(parameter.numel() for parameter in held)
    for vector in value if isinstance(value, (list, tuple)) else [value]:
        _check_form(optimizer, "all parameters", key, vector, (total,))
        offset = 0
        for parameter in held:
            name = names.get(id(parameter))
            if name is not None:
                part = vector[offset : offset + parameter.numel()].view(parameter.shape)
                yield StateTensor(name, key, part, power, in_list=isinstance(value, (list, tuple)))
            offset += parameter.numel()


def _check_form(optimizer: Optimizer, name: str, key: str, tensor: Any, shape: tuple[int, ...]) -> None:
    """Raises unless a piece of state is a dense float tensor of that shape."""
    if not isinstance(tensor, Tensor):
        form = f"is a {type(tensor).__name__}"
    elif (
        tuple(tensor.shape) != shape or tensor.layout != torch.strided or not (tensor.is_floating_point() or tensor.is_complex())
    ):
        form = f"has shape {tuple(tensor.shape)}, type {tensor.dtype} and layout {tensor.layout}"
    else:
        return
    raise OptimizerError(
        f"state {key!r} of {name!r} in {type(optimizer).__name__} {form}, but a dense float tensor of shape {shape} is expected: "
        "nothing was rescaled. Pass state='reset' to drop that state; load a state_dict that belongs to this model, if this one "
        "does not; or say with fxenorm.register_optimizer how it follows in this form, 0 where it stays as it is"
    )

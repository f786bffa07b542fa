"""The state tensors that follow a rescaling, found and checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import OptimizerError
from . import sgd  # noqa: F401  (registers its rule)
from .registry import find_rule

__all__ = ["OptimizerLike", "StateTensor", "owned_by", "state_tensors", "unwrap_optimizers"]

OptimizerLike = Any
"""An optimizer, something that holds one as ``.optimizer``, a sequence of these, or None."""


@dataclass(frozen=True)
class StateTensor:
    """One tensor of an optimizer's state.

    Attributes:
        parameter: name of the parameter that it belongs to.
        key: its key in the state.
        tensor: the tensor, of the parameter's shape.
        power: it is multiplied by the parameter's factor D to this power.
    """

    parameter: str
    key: str
    tensor: Tensor
    power: int


def unwrap_optimizers(optimizer: OptimizerLike) -> tuple[Optimizer, ...]:
    """The torch optimizers in what a user passed, each once.

    Args:
        optimizer: an optimizer, a wrapper with ``.optimizer``, a sequence of them, or None.

    Returns:
        The innermost optimizers; empty for None.

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
    while getattr(inner, "optimizer", None) is not None and id(inner) not in seen:
        seen.add(id(inner))
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise OptimizerError(
            "expected a torch.optim.Optimizer, a wrapper that holds one as .optimizer, a sequence of them, or None; "
            f"got {type(optimizer).__name__}"
        )
    return (inner,)


def owned_by(optimizers: Iterable[Optimizer]) -> set[int]:
    """ids of all parameters in the optimizers' groups."""
    return {id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}


def state_tensors(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> list[StateTensor]:
    """Every state tensor that follows one of the parameters; writes nothing.

    State is looked up at each call, for ``load_state_dict`` replaces it. Parameters without state yet are passed over.

    Args:
        optimizers: as `unwrap_optimizers` returns them.
        parameters: by name, the parameters that are rescaled, as the optimizers hold them.

    Returns:
        The tensors with their powers.

    Raises:
        OptimizerError: an optimizer has no rule, holds none of the parameters, or holds state of another shape or layout.
    """
    found: list[StateTensor] = []
    for optimizer in optimizers:
        rule = find_rule(optimizer)
        for name, parameter in parameters.items():
            state = optimizer.state.get(parameter)
            if not state:
                continue
            for key, power in rule(state).items():
                tensor = state[key]
                if tensor.shape != parameter.shape or tensor.layout != torch.strided:
                    raise OptimizerError(
                        f"state {key!r} of {name!r} in {type(optimizer).__name__} has shape {tuple(tensor.shape)} and layout "
                        f"{tensor.layout}, but the parameter has shape {tuple(parameter.shape)}: nothing was rescaled. "
                        "Reset that state, or load a state_dict that belongs to this model"
                    )
                found.append(StateTensor(name, key, tensor, power))
    return found

"""Shows a model other values behind its own tensors, for the time of a run: nothing is written into its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import RescaleError
from ..weights.tensors import named_tensors, tie_again

__all__ = ["shell_of", "shown"]


def shell_of(model: nn.Module, aliases: Mapping[str, str], converted: Callable[[Tensor], Tensor]) -> nn.Module:
    """Returns a tree of modules with copies of a model's tensors under the same names, and nothing else.

    Args:
        model: the module.
        aliases: by name of a tied tensor, the name of the tensor that it is.
        converted: returns a copy of a tensor.

    Raises:
        RescaleError: a tensor has no memory of its own that could be exchanged.
    """
    shell = nn.Module()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    made: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        if is_traceable_wrapper_subclass(tensor):
            raise RescaleError(f"{name!r} is a {type(tensor).__name__}, whose memory cannot be exchanged for a check")
        *path, leaf = name.split(".")
        owner = shell
        for part in path:
            owner = owner._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        if id(tensor) not in made:
            made[id(tensor)] = converted(tensor)
            if name in parameters:
                made[id(tensor)] = nn.Parameter(made[id(tensor)], requires_grad=False)
        held: dict[str, Any] = owner._parameters if isinstance(made[id(tensor)], nn.Parameter) else owner._buffers
        held[leaf] = made[id(tensor)]
    tie_again(shell, aliases)
    return shell


@contextlib.contextmanager
def shown(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> Iterator[None]:
    """Has `tensors` show the memory of the others of the same names for the time of a ``with`` block.

    Raises:
        RescaleError: they cannot.
    """
    own = {id(tensor): (tensor, tensor.data) for tensor in tensors.values()}
    # A graph that was recorded before must not take what a run writes for a write into its tensors.
    with contextlib.ExitStack() as counters:
        for tensor, _ in own.values():
            if not tensor.is_inference():
                counters.enter_context(_unsafe_preserve_version_counter(tensor))
        try:
            _show(tensors, others)
            yield
        finally:
            for tensor, data in own.values():
                tensor.data = data


def _show(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Has tensors show the memory of the others of the same names."""
    try:
        for name, tensor in tensors.items():
            tensor.data = others[name].data
    except (RuntimeError, TypeError, ValueError) as error:
        raise RescaleError(f"the model's tensors cannot show other values for a check: {error}") from error

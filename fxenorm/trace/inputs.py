"""Example inputs in one form, and the versions of them that a run needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

from ..errors import ExampleInputsError

__all__ = ["Inputs", "given_inputs", "is_meta"]


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward call; `guessed` tells whether we made them up."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guessed: bool = False

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """Returns the same arguments with `function` applied to every tensor in them."""

        def apply(leaf: Any) -> Any:
            return function(leaf) if isinstance(leaf, torch.Tensor) else leaf

        return Inputs(tree_map(apply, self.args), tree_map(apply, dict(self.kwargs)), self.guessed)

    def tensors(self) -> list[torch.Tensor]:
        """Returns every tensor in the arguments, in order."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, torch.Tensor)]

    def names(self, forward: Callable[..., Any]) -> list[str]:
        """Returns a name for each of `tensors()`: its argument of `forward`, with the way to it in a nested one, as "x_0"."""
        try:
            arguments: Mapping[str, Any] = inspect.signature(forward).bind(*self.args, **self.kwargs).arguments
        except (TypeError, ValueError):  # forward was called by other arguments than it names, or has no signature
            arguments = {"args": self.args, **self.kwargs}
        found = {id(leaf): "_".join(map(_step, path)) for path, leaf in tree_flatten_with_path(dict(arguments))[0]}
        return [found[id(tensor)] for tensor in self.tensors()]

    def repeated(self) -> Inputs | None:
        """Returns the arguments with a batch of one made a batch of two; None if no tensor has such a batch."""
        if not any(tensor.dim() > 1 and tensor.shape[0] == 1 for tensor in self.tensors()):
            return None
        return self.map(lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() > 0 and tensor.shape[0] == 1 else tensor)

    def resized(self, sizes: Sequence[Sequence[int]]) -> Inputs:
        """Returns the arguments with the tensors repeated or cut to other sizes, one shape for each of `tensors()`."""
        remaining = iter(sizes)
        return self.map(lambda tensor: _resized(tensor, next(remaining)))

    def hint(self) -> str:
        """Returns the end of a sentence that asks for other inputs: numbers alone are a shape, a dict may be one argument."""
        values = [*self.args, *self.kwargs.values()]
        if self.guessed or not values:
            return "."
        if not self.kwargs and all(type(value) is int for value in values):
            return f": did you mean torch.randn({', '.join(map(str, values))})?"
        if not self.args:
            return "; a dict is taken as keyword arguments: where it is one argument, pass ({...},)."
        return "."

    def __str__(self) -> str:
        parts = [_describe(value) for value in self.args]
        parts += [f"{name}={_describe(value)}" for name, value in self.kwargs.items()]
        return "(" + ", ".join(parts) + ")"


def _step(key: Any) -> str:
    """Returns one step on the way to a leaf of nested arguments: a key, a position or an attribute."""
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


def _describe(value: Any) -> str:
    """Returns a short text: "float32[2, 3, 224, 224]"."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_describe(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_describe(item)}" for key, item in value.items()) + "}"
    return repr(value) if isinstance(value, (int, float, bool, str, type(None))) else type(value).__name__


def _resized(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`tensor` repeated or cut along every axis; indices and masks in it stay valid."""
    for axis, size in enumerate(shape):
        if size != tensor.shape[axis]:
            places = torch.arange(size, device=tensor.device, dtype=torch.int64) % tensor.shape[axis]
            tensor = tensor.detach().index_select(axis, places)
    return tensor


def given_inputs(example_inputs: Any, example_kwargs: Any) -> Inputs | None:
    """Returns the user's inputs in one form, None if there are none; see `trace_model` for the forms that are taken."""
    if example_kwargs is None:
        extra: dict[str, Any] = {}
    elif isinstance(example_kwargs, Mapping) and all(isinstance(key, str) for key in example_kwargs):
        extra = dict(example_kwargs)
    else:
        raise ExampleInputsError(f"example_kwargs must be a dict of keyword arguments, got {type(example_kwargs).__name__}.")
    if example_inputs is None:
        return None
    if isinstance(example_inputs, torch.Tensor):
        return Inputs((example_inputs,), extra)
    if isinstance(example_inputs, Mapping) and all(isinstance(key, str) for key in example_inputs):
        twice = sorted(set(example_inputs) & set(extra))
        if twice:
            raise ExampleInputsError(f"{', '.join(twice)} is given both in example_inputs and in example_kwargs.")
        return Inputs((), {**example_inputs, **extra})
    if isinstance(example_inputs, (tuple, list)):
        return Inputs(tuple(example_inputs), extra)
    raise ExampleInputsError(
        "example_inputs must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}."
    )


def is_meta(model: nn.Module) -> bool:
    """Whether any parameter or buffer is on the meta device, so that nothing can be computed for real."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))

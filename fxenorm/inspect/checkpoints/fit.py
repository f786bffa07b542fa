"""Puts the tensors of a file into a model: names are matched, shapes checked, tied tensors kept tied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from .checkpoint import Checkpoint

__all__ = ["fit"]

_PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.")
"""Wrappers put these in front of every name: DataParallel, torch.compile, Lightning's modules."""

_OPTIONAL = "num_batches_tracked"
"""A counter that old files lack; torch loads them too."""


def fit(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Gives a model the weights of a checkpoint, in the checkpoint's types.

    Args:
        model: written only after every name and shape was checked.
        checkpoint: its tensors become the model's own memory.

    Returns:
        By name in the checkpoint, the name in the model.

    Raises:
        CheckpointError: names, shapes or kinds of numbers differ, or two tensors that are tied in the model differ in the file.
    """
    names = _names(checkpoint.tensors, _alias_names(model))
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    _check(checkpoint, names, own)
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in own.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    file_names = {inner: outer for outer, inner in names.items()}
    with torch.no_grad():
        for aliases in by_tensor.values():
            given = [checkpoint.tensors[file_names[alias]] for alias in aliases if alias in file_names]
            if given:
                _set(model, aliases, own[aliases[0]], given[0])
    return names


def _alias_names(model: nn.Module) -> set[str]:
    """Returns every name of every tensor in the model's state dict."""
    return set(model.state_dict())


def _names(tensors: Iterable[str], own: set[str]) -> dict[str, str]:
    """Returns the model's name for each one in the file; a prefix that wrappers put before all of them is taken off."""
    names = list(tensors)

    def without(prefix: str) -> dict[str, str]:
        """Returns the names without a prefix."""
        return {name: name.removeprefix(prefix) for name in names}

    possible = [prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names)]
    return without(max(possible, key=lambda prefix: len(own & set(without(prefix).values()))))


def _check(checkpoint: Checkpoint, names: Mapping[str, str], own: Mapping[str, Tensor]) -> None:
    """Raises where the file does not fit the model, with all reasons in one sentence."""
    given = {inner: checkpoint.tensors[outer] for outer, inner in names.items()}
    covered = {id(own[name]) for name in given if name in own}
    missing = [name for name, tensor in own.items() if id(tensor) not in covered and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in given if name not in own]
    reasons = [f"{len(some)} {word} ({_some(some)})" for word, some in (("missing", missing), ("unexpected", unexpected)) if some]
    wrong = [
        f"{name} is {_kind(tensor)} in the file and {_kind(own[name])} in the model"
        for name, tensor in given.items()
        if name in own and _kind(tensor) != _kind(own[name])
    ]
    reasons += [_some(wrong)] if wrong else []
    first: dict[int, str] = {}
    for name, tensor in given.items():
        if not reasons and not _equal(given[first.setdefault(id(own[name]), name)], tensor):
            reasons.append(f"{first[id(own[name])]} and {name} are one tensor in the model and differ in the file")
    if reasons:
        raise CheckpointError(f"{checkpoint.given} does not fit the model: {'; '.join(reasons)}")


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same entries, where NaN is the same as NaN."""
    return one is other or bool(((one == other) | ((one != one) & (other != other))).all())


def _kind(tensor: Tensor) -> str:
    """Returns shape and kind of number of a tensor, in words."""
    number = "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"
    return f"{number}[{', '.join(map(str, tensor.shape))}]"


def _set(model: nn.Module, aliases: list[str], old: Tensor, new: Tensor) -> None:
    """Puts a tensor in place of another under all its names: into the same object, so that others who hold it see it."""
    if not old.is_meta:
        old.data = new
        return
    fresh: Any = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    for alias in aliases:
        owner, _, leaf = alias.rpartition(".")
        setattr(model.get_submodule(owner), leaf, fresh)


def _some(names: list[str]) -> str:
    """Returns the first few of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

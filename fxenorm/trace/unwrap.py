"""Looks through the wrappers that put a model inside another module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["replica_group", "unwrap", "unwrapped"]


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside `model`'s wrappers.

    Looked through are ``torch.compile``'s module, ``DataParallel``, ``DistributedDataParallel`` and ``AveragedModel``.

    Args:
        model: any module, wrapped any number of times or not at all.

    Returns:
        The innermost module; `model` itself where it is no wrapper.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(layer)) is layer
        True
    """
    *_, innermost = unwrapped(model)
    return innermost


def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Yields `model`, the module inside it, and so on to the innermost; see `unwrap`."""
    # Imported here: they pull in optimizers and the distributed package, which `import fxenorm` need not wait for.
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel

    while True:
        inner: object = None
        if isinstance(model, (DataParallel, DistributedDataParallel, AveragedModel)):
            inner = model.module
        elif type(model).__name__ == "OptimizedModule":  # by name: importing torch._dynamo takes seconds
            inner = getattr(model, "_orig_mod", None)
        yield model
        if not isinstance(inner, nn.Module):
            return
        model = inner


def replica_group(model: nn.Module) -> Any:
    """Returns the process group of the DistributedDataParallel among a model's wrappers; None where there is none."""
    from torch.nn.parallel import DistributedDataParallel

    return next((module.process_group for module in unwrapped(model) if isinstance(module, DistributedDataParallel)), None)

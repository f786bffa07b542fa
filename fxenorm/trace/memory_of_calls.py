"""Tensors that forward keeps from one call to the next: they are held, and nothing is known of their values."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn

from .hold import hold
from .names import storage_id
from .overwritten import mark_holds, mark_read
from .state import ReachableState
from .traced_model import Placeholder, TracedModel

__all__ = ["hold_what_is_kept", "with_state"]

KEPT = "forward keeps it for its next call"


def hold_what_is_kept(model: nn.Module, state: ReachableState) -> None:
    """Hooks that hold every tensor which a call of `model` leaves where the next call reads it; they stay on the model."""

    def entering(module: nn.Module, args: Any) -> None:
        state.begin()
        state.overwritten.clear()

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        for kept in state.kept():
            if isinstance(kept.before, torch.Tensor):
                state.rebound[id(kept.before)] = kept.before
            if kept.is_read and not torch._C._functorch.is_functorch_wrapped_tensor(kept.tensor):
                hold(kept.tensor, KEPT)
                state.overwritten.append(id(kept.before) if state.is_plain(kept.before) else None)

    model.register_forward_pre_hook(entering, prepend=True)
    model.register_forward_hook(leaving)


def with_state(traced: TracedModel, state: ReachableState) -> TracedModel:
    """Tells tensors that were there before forward from those that it made out of Python numbers, which alone are constants."""
    placeholders = dict(traced.placeholders)
    mark_holds(traced.graph, torch.ops.fxenorm.hold.default, KEPT, state.overwritten)
    for node in traced.graph.nodes:
        item = placeholders.get(node.name)
        if item is not None and item.value is not None:
            mark_read(node, id(item.value))
        if item is None or item.value is None or item.kind not in ("constant", "buffer"):
            continue
        value = None if id(item.value) in state.rebound else item.value
        if item.kind == "buffer":
            placeholders[node.name] = Placeholder("buffer", item.name, value if value is not None else item.value)
        elif not _made_by_forward(node, item.value):
            placeholders[node.name] = Placeholder("state", item.name, value)
    return dataclasses.replace(traced, placeholders=placeholders)


def _made_by_forward(node: fx.Node, value: torch.Tensor) -> bool:
    """Whether the tracer marks a constant as made from Python numbers, in memory of its own: an array's can change."""
    lifted = bool(node.users) and all("lift_fresh" in str(user.target) for user in node.users)
    return lifted and (value.is_meta or storage_id(value) == 0 or value.untyped_storage().resizable())

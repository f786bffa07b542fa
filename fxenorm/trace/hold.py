"""The operator `fxenorm::hold`, by which a tracer writes into a graph that a tensor stays as it is, with the reason."""

from __future__ import annotations

import torch

__all__ = ["HOLD", "hold"]

HOLD = "fxenorm::hold"

# Marked as a write, so that no tracer drops it, and because memory that was handed out may hold anything afterwards.
_LIBRARY = torch.library.Library("fxenorm", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("hold(Tensor(a!) self, str reason) -> Tensor(a!)")  # type: ignore[no-untyped-call]
_LIBRARY.impl("hold", lambda tensor, reason: tensor, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def hold(tensor: torch.Tensor, reason: str) -> None:
    """Says in the graph that is being recorded, if any, that `tensor` must be left as it is; changes nothing."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise RuntimeError(f"inside a function transform, {reason} takes a tensor out of the graph")
    with torch.no_grad():
        torch.ops.fxenorm.hold.default(tensor, reason)

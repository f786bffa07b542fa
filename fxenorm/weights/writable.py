"""Finds tensors that cannot be multiplied in place, before anything is written, by trying it on one entry of a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..distributed.dtensors import local_part, memory_of
from ..errors import RescaleError
from ..kernels.memory import has_plain_memory
from ..kernels.program import ScaleTarget, float_dtype

__all__ = ["refuse_unwritable"]

_ASK = "Make it dense, convert it to a type that can be multiplied, or leave it out: fxenorm.analyze(..., exclude=...)"


def refuse_unwritable(targets: Sequence[ScaleTarget]) -> None:
    """Raises for the first tensor that no operator multiplies in place.

    Raises:
        RescaleError: a tensor is sparse, its entries share memory, its type knows no product (float8, integers, quantised
            types), or it is of a class that does not let itself be multiplied in place.
    """
    known: dict[tuple[torch.dtype, torch.device], str] = {}
    for target in targets:
        tensor = local_part(target.tensor)
        form = _form(tensor, known)
        if form:
            raise RescaleError(f"{target.name} {form}: nothing was rescaled. {_ASK}")


def _form(tensor: Tensor, known: dict[tuple[torch.dtype, torch.device], str]) -> str:
    """Says why a tensor cannot be multiplied in place; empty where it can."""
    if tensor.layout != torch.strided:
        return f"has layout {tensor.layout}, so it cannot be multiplied in place"
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        strides = f"of shape {tuple(tensor.shape)} has strides {tensor.stride()}"
        return f"{strides}: its entries share memory (expand), so it cannot be multiplied in place"
    if not tensor.numel():
        return ""
    if not has_plain_memory(tensor):
        return _of_its_class(tensor)
    kind = (tensor.dtype, tensor.device)
    if kind not in known:
        known[kind] = _of_its_type(torch.ones(1, dtype=torch.float32, device=tensor.device).to(tensor.dtype))
    return known[kind]


def _of_its_type(one: Tensor) -> str:
    """Says why one entry of a plain tensor cannot be multiplied; empty where it can."""
    try:
        with torch.no_grad():
            one.mul_(_two(one))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return f"has type {one.dtype}, which cannot be multiplied in place ({_first_line(error)})"
    return ""


def _of_its_class(tensor: Tensor) -> str:
    """Says why a tensor of an unusual class or form cannot be multiplied; empty where it can.

    A part of it must be the same memory, or a product would be lost.
    """
    kind = f"is a {type(tensor).__name__}, which cannot be multiplied in place"
    try:
        with torch.no_grad():
            part = tensor.detach()[(slice(0, 1),) * tensor.ndim]
            if type(part) is not type(tensor.detach()) or memory_of(part) != memory_of(tensor):
                return f"{kind}: its parts are copies"
            tried = part.clone()
            expected = tried * _two(tensor)
            tried[()].mul_(_two(tensor))
            # A fake tensor has no values to compare.
            if not isinstance(tensor, FakeTensor) and not bool((tried == expected).all()):
                return f"{kind}: products are not kept"
    except (RuntimeError, TypeError, NotImplementedError, ValueError, AttributeError) as error:
        return f"{kind} ({_first_line(error)})"
    return ""


def _two(tensor: Tensor) -> Tensor:
    """Returns the factor 2 in the form in which a rescaling brings it."""
    return torch.full((1,) * tensor.ndim, 2.0, dtype=float_dtype(tensor.device), device=tensor.device)


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]

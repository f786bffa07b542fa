"""Finds the coarsest floating-point type that values pass through in one run: its rounding is no change of the function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["DownCasts", "coarsest", "tolerance_of"]

_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference of outputs that rounding to a type explains.

Float64's is the promise of `Plan.verify`; the others are bounds of ten and more spacings of their type (1e-7, 1e-3, 8e-3).
"""

_COARSEST_TOLERANCE = 0.5
"""For types of eight bits and fewer, a bound: float8_e5m2 keeps two bits behind the first, so that each rounding is up to 1/8."""


def tolerance_of(dtype: torch.dtype) -> float:
    """Returns the largest relative difference of outputs that rounding to `dtype` explains."""
    return _TOLERANCES.get(dtype, _COARSEST_TOLERANCE)


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Returns the type with the fewest digits among the floating-point and complex ones; float64 without any."""
    real = [dtype.to_real() if dtype.is_complex else dtype for dtype in dtypes]
    return max((dtype for dtype in real if dtype.is_floating_point), key=_spacing, default=torch.float64)


class DownCasts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the types to which operators round values of a finer type.

    Attributes:
        found: these types.
    """

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Returns True: parts that torch.compile compiles (flex_attention) refuse other modes."""
        return True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Runs `func` and compares the types of its arguments with those of its results."""
        given = _types((args, kwargs))
        made = func(*args, **(kwargs or {}))
        if given and not _takes_no_values(func):
            finest = min(map(_spacing, given))
            self.found.update(dtype for dtype in _types(made) if _spacing(dtype) > finest)
        return made


def _types(values: Any) -> set[torch.dtype]:
    """Returns the floating-point types of the tensors in `values`."""
    found = {leaf.dtype for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    return {dtype.to_real() if dtype.is_complex else dtype for dtype in found if dtype.is_floating_point or dtype.is_complex}


def _spacing(dtype: torch.dtype) -> float:
    """Returns the distance from 1 to the next number of a type."""
    return float(torch.finfo(dtype).eps)


def _takes_no_values(func: Any) -> bool:
    """Whether an operator makes a new tensor and reads no more of its operands than their shape and type."""
    name = str(getattr(func, "__name__", "")).split(".")[0]
    return name.endswith("_like") or name.startswith("new_")

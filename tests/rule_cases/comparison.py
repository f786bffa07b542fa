"""Rows of comparisons and selections. Most give integers, which a derivative does not see: dimensions are by hand."""

from __future__ import annotations

import torch

from .case import Case

A = torch.ops.aten
X = (2, 3)
MASK = torch.tensor([True, False, True])
REASON = "masks that are known are not looked at: both sides carry one field everywhere"


def _pair(name: str) -> tuple[Case, ...]:
    """A comparison with 0, with another constant, and with a tensor of the same shape and one that is broadcast."""
    call = getattr(torch, name)
    return (
        Case(f"aten::{name}", lambda x: call(x, 0), (X,), "0", dimension=6),
        Case(f"aten::{name}", lambda x: call(x, torch.inf), (X,), "inf", dimension=6),
        Case(f"aten::{name}", lambda x: call(x, 0.7), (X,), "0.7", dimension=0),
        Case(f"aten::{name}", call, (X, X), "tensor", dimension=6),
        Case(f"aten::{name}", call, (X, (3,)), "broadcast", dimension=3),
        Case(f"aten::{name}", lambda x: call(x, torch.zeros(3, dtype=x.dtype)), (X,), "zeros", dimension=6),
        Case(f"aten::{name}", lambda x: call(x, torch.ones(3, dtype=x.dtype)), (X,), "ones", dimension=0),
        Case(f"aten::{name}", lambda x: call(x, torch.arange(1, 4)), (X,), "integers", dimension=0),
    )


def _sign(name: str) -> Case:
    return Case(f"aten::{name}", getattr(torch, name), (X,), dimension=6)


CASES = (
    *(
        case
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "greater", "less", "greater_equal", "less_equal", "not_equal")
        for case in _pair(name)
    ),
    *map(
        _sign, ("sign", "sgn", "isnan", "isinf", "isfinite", "signbit", "logical_not", "nonzero", "any", "all", "count_nonzero")
    ),
    *map(_sign, ("isposinf", "isneginf", "isreal")),
    *(Case(f"aten::{name}", getattr(torch, name), (X, X), dimension=12) for name in ("logical_and", "logical_or", "logical_xor")),
    *(
        Case(f"aten::{name}", lambda x, name=name: getattr(A, name)(x > 0), (X,), dimension=6)
        for name in ("_is_all_true", "_is_any_true")
    ),
    Case("aten::isclose", torch.isclose, (X, X), dimension=0),
    Case("aten::heaviside", torch.heaviside, (X, X), dimension=6),
    Case("aten::copysign", torch.copysign, (X, X), dimension=12),
    Case("aten::where.self", lambda x, y: torch.where(MASK, x, y), (X, X), misses=REASON),
    Case("aten::where.self", lambda x, y: torch.where(x > 0, x, y), (X, X), "mask from the run"),
    Case("aten::where.ScalarOther", lambda x: torch.where(x > 0, x, 0.0), (X,)),
    Case("aten::where.ScalarOther", lambda x: torch.where(MASK, x, 2.0), (X,), "2", misses=REASON),
    Case("aten::where.ScalarOther", lambda x: torch.where(MASK, x, -torch.inf), (X,), "-inf"),
    Case("aten::where.ScalarSelf", lambda x: torch.where(MASK, 0.0, x), (X,)),
    Case("aten::where.Scalar", lambda x: torch.where(x > 0, 1.0, 0.0), (X,), dimension=6),
    Case("aten::where.default", lambda x: torch.where(x > 0), (X,), dimension=6),
    Case("aten::masked_fill", lambda x: x.masked_fill(MASK, 0.0), (X,)),
    Case("aten::masked_fill", lambda x: x.masked_fill(MASK, -torch.inf), (X,), "-inf"),
    Case("aten::masked_fill", lambda x: x.masked_fill(MASK, 2.0), (X,), "2", misses=REASON),
    Case("aten::masked_fill", lambda x, v: x.masked_fill(MASK, v), (X, ()), "tensor", misses=REASON),
    Case("aten::argmax", lambda x: torch.argmax(x, 1), (X,), dimension=2),
    Case("aten::argmax", torch.argmax, (X,), "all", dimension=1),
    Case("aten::argmin", lambda x: torch.argmin(x, 0), (X,), dimension=3),
    Case("aten::argsort", lambda x: torch.argsort(x, 1), (X,), dimension=2),
    Case("aten::argsort", lambda x: torch.argsort(x, stable=True, dim=0), (X,), "stable", dimension=3),
    Case("aten::sort", lambda x: torch.sort(x, 1), (X,), draws=60),
    Case("aten::sort", lambda x: torch.sort(x, stable=True, dim=0), (X,), "stable", draws=60),
    Case("aten::topk", lambda x: torch.topk(x, 2, 1), ((2, 4),), draws=60),
    Case("aten::kthvalue", lambda x: torch.kthvalue(x, 2, 1), (X,), draws=60),
    Case("aten::mode", lambda x: torch.mode(x, 1), (X,), draws=60),
    Case("aten::median.dim", lambda x: torch.median(x, 1), (X,), draws=60),
    Case("aten::unique_consecutive", lambda x: torch.unique_consecutive(x), ((4,),), dimension=1),
    Case("aten::unique_dim", lambda x: A.unique_dim(x, 0), ((3, 2),), dimension=1),
    Case("aten::_unique2", lambda x: torch.unique(x), ((4,),), dimension=1),
    *(
        Case(f"aten::{name}", getattr(torch, name), (X, X), "floating", dimension=0)
        for name in ("floor_divide", "remainder", "fmod")
    ),
    Case("aten::bitwise_not", lambda x: torch.bitwise_not(x > 0), (X,), dimension=6),
    Case("aten::bitwise_and", lambda x: torch.bitwise_and(x > 0, x < 0), (X,), dimension=6),
    Case("aten::bitwise_or", lambda x: torch.bitwise_or(x > 0, x < 0), (X,), dimension=6),
    Case("aten::bitwise_xor", lambda x: torch.bitwise_xor(x > 0, x < 0), (X,), dimension=6),
    Case("aten::bitwise_right_shift", lambda x: torch.bitwise_right_shift((x > 0).long(), 1), (X,), dimension=6),
    Case("aten::bitwise_left_shift", lambda x: torch.bitwise_left_shift((x > 0).long(), 1), (X,), dimension=6),
    *(
        Case(f"aten::{name}", lambda x, name=name: getattr(A, name)((x > 0).long(), (x < 0).long()), (X,), "tensor", dimension=6)
        for name in ("bitwise_right_shift", "bitwise_left_shift")
    ),
    Case("aten::__and__", lambda x: (x > 0) & (x < 0), (X,), dimension=6),
    Case("aten::__or__", lambda x: (x > 0) | (x < 0), (X,), dimension=6),
    Case("aten::__xor__", lambda x: (x > 0) ^ (x < 0), (X,), dimension=6),
)

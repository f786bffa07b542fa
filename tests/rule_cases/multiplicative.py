"""Rows of the multiplicative family."""

from __future__ import annotations

import torch

from .case import Case

X = (2, 3, 4)
PRODUCTS = "products along an axis multiply as many scales as it has entries; such long sums are held"

CASES = (
    Case("aten::mul", torch.mul, (X, X)),
    Case("aten::mul", torch.mul, (X, (3, 1)), "broadcast"),
    Case("aten::mul", torch.mul, ((3, 1), X), "broadcast first"),
    Case("aten::mul", lambda x: x * x, (X,), "by itself"),
    Case("aten::mul", lambda x: x * 2.5, (X,), "constant"),
    Case("aten::mul", lambda x: x * torch.arange(1, 5), (X,), "integers"),
    Case("aten::mul", lambda x: x * torch.arange(1, 13).view(3, 4), ((4,),), "a row by a table of integers"),
    Case("aten::div", lambda x: x / torch.arange(1, 13).view(3, 4), ((3, 1),), "a column by a table of integers"),
    Case("aten::mul", lambda x: x * torch.zeros(4, dtype=x.dtype), (X,), "zeros"),
    Case("aten::mul", lambda x: x * torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=x.dtype), (X,), "mask"),
    Case("aten::mul", lambda x: x * ((x > 0).long() * 2), (X,), "integers that say where x is positive", dimension=24),
    Case(
        "aten::pow.Tensor_Scalar",
        lambda x: x * (1 + (x > 0).long()) ** 2,
        (X,),
        "integers that say where x is positive",
        dimension=24,
    ),
    Case("aten::mul", lambda x, w: x.detach() * w.abs(), (X, (4,)), "of a parameter"),
    Case("aten::multiply", torch.multiply, (X, (4,))),
    Case("aten::div", torch.div, (X, X)),
    Case("aten::div", torch.div, (X, (3, 1)), "broadcast"),
    Case("aten::div", lambda x: x / 3, (X,), "by a constant"),
    Case("aten::div", lambda x: x / x, (X,), "by itself"),
    Case("aten::div", lambda x: torch.div(x, 2, rounding_mode="floor"), (X,), "rounded", dimension=0),
    Case("aten::div", lambda x: x / torch.full((4,), torch.inf, dtype=x.dtype), (X,), "by infinity"),
    Case("aten::divide", torch.divide, ((2, 3), (2, 3))),
    Case("aten::true_divide", torch.true_divide, ((2, 3), (2, 3))),
    Case("aten::pow.Tensor_Scalar", lambda x: x**2, (X,)),
    Case("aten::pow.Tensor_Scalar", lambda x: x**3, (X,), "3"),
    Case("aten::pow.Tensor_Scalar", lambda x: x**0, (X,), "0"),
    Case("aten::pow.Tensor_Scalar", lambda x: x**-1, (X,), "-1"),
    Case("aten::pow.Tensor_Scalar", lambda x: x**0.5, (X,), "0.5", positive=True),
    Case("aten::pow.Tensor_Scalar", lambda x: x**-1.5, (X,), "-1.5", positive=True),
    Case("aten::pow.Tensor_Scalar", lambda x: x**0.7, ((2, 3),), "0.7", positive=True),
    Case("aten::pow.Tensor_Scalar", lambda x: x**0.71, ((2, 3),), "0.71", positive=True, misses="exponents are integers"),
    Case("aten::pow.Scalar", lambda x: torch.pow(2.0, x), ((2, 3),)),
    Case("aten::pow.Tensor_Tensor", lambda x, y: torch.pow(x, y), ((2, 3), (3,)), positive=True),
    Case("aten::float_power.Tensor_Scalar", lambda x: torch.float_power(x, 2), (X,)),
    Case("aten::square", torch.square, (X,)),
    Case("aten::sqrt", torch.sqrt, (X,), positive=True),
    Case("aten::sqrt", lambda x: torch.sqrt(x * x), (X,), "of a square"),
    Case("aten::rsqrt", torch.rsqrt, (X,), positive=True),
    Case("aten::rsqrt", lambda x: torch.rsqrt(torch.square(x)), (X,), "of a square"),
    Case("aten::reciprocal", torch.reciprocal, (X,)),
    Case("aten::prod", lambda x: torch.prod(x, 1), ((2, 3),), misses=PRODUCTS),
    Case("aten::cumprod", lambda x: torch.cumprod(x, 1), ((2, 3),), misses=PRODUCTS),
)

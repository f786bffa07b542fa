"""Rows of the additive family."""

from __future__ import annotations

import torch

from fxenorm.rules import RuleOptions

from .case import Case

X = (2, 3, 4)
Y = (3, 1)

CASES = (
    Case("aten::add", torch.add, (X, X)),
    Case("aten::add", torch.add, (X, Y), "broadcast"),
    Case("aten::add", lambda x, y: torch.add(x, y, alpha=-2), (X, (4,)), "alpha"),
    Case("aten::add", lambda x, y: torch.add(x, y, alpha=0), ((2, 3), (3,)), "alpha 0"),
    Case("aten::add", lambda x: x + x, (X,), "to itself"),
    Case("aten::add", lambda x: x + 1, (X,), "constant 1", offsets=(1,)),
    Case("aten::add", lambda x: x + 0, (X,), "constant 0"),
    Case("aten::add", lambda x: x + torch.ones(4, dtype=x.dtype), (X,), "ones", offsets=(1,)),
    Case("aten::add", lambda x: torch.add(x, 0.7, alpha=-2), (X,), "alpha times a constant", offsets=(-1.4,)),
    Case("aten::add", lambda x: torch.add(torch.full((3, 1), 0.5).double(), x, alpha=2), (X,), "to a constant", offsets=(0.25,)),
    Case("aten::add", lambda x: x + torch.ones_like(x), (X,), "ones like it", offsets=(1,)),
    Case("aten::add", lambda x: (x + 1) - 3, (X,), "two constants", offsets=(-2,)),
    Case(
        "aten::add", lambda x: (x + 1) - 1.0, (X,), "constants that cancel", misses="an activation is held by the first of them"
    ),
    Case("aten::add", lambda x: 3 * x[:, 1:] / 2 + 1, (X,), "multiplied before", offsets=(2 / 3,)),
    Case("aten::rsub", lambda x: 2.5 - (-x) / 4, (X,), "turned", offsets=(10,)),
    Case("aten::add", lambda x: (1 + x) * x, (X,), "once with and once without"),
    Case("aten::add", lambda x: (x * torch.tensor([1.0, 2.0, 2.0, 1.0])) + 1, (X,), "by numbers of several sizes"),
    Case("aten::add", lambda x, w, b: (1 + w) * x + b, (X, (4,), (4,)), "of a gain", offsets=(0, 1)),
    Case("aten::add", lambda x, w: x + (1 + w), (X, (4,)), "of a term", offsets=(0, 1)),
    Case("aten::add", lambda x: x + torch.zeros(4, dtype=x.dtype), (X,), "zeros"),
    Case("aten::add", lambda x: x + torch.arange(1, 5), (X,), "integers"),
    Case("aten::add", lambda x: x + torch.tensor([-torch.inf, 0.0, 0.0]).double().reshape(3, 1), (X,), "mask of 0 and -inf"),
    Case("aten::sub", torch.sub, (X, Y)),
    Case("aten::sub", lambda x: x - 3, (X,), "constant", offsets=(-3,)),
    Case("aten::subtract", torch.subtract, (X, X)),
    Case("aten::rsub", lambda x, y: torch.rsub(x, y), ((2, 3), (2, 3))),
    Case("aten::rsub", lambda x: torch.rsub(x, 1), ((2, 3),), "constant", offsets=(-1,)),
    Case("aten::rsub", lambda x: torch.rsub(x, 1, alpha=2), ((2, 3),), "alpha", offsets=(-0.5,)),
    Case("aten::lerp", lambda x, y: torch.lerp(x, y, 0.3), ((2, 3), (2, 3))),
    Case("aten::lerp", lambda x, y, w: torch.lerp(x, y, w), ((2, 3), (2, 3), (3,)), "weight"),
    Case("aten::addcmul", lambda x, a, b: torch.addcmul(x, a, b, value=0.5), ((2, 3), (2, 3), (2, 3))),
    Case("aten::addcmul", torch.addcmul, ((2, 3), (3,), (2, 1)), "broadcast"),
    Case(
        "aten::addcmul",
        lambda x, a, b: torch.addcmul(x, a, b, value=0),
        ((2, 3), (3,), (2, 1)),
        "value 0",
        misses="a product times 0 is not seen to be 0",
    ),
    Case("aten::addcdiv", torch.addcdiv, ((2, 3), (2, 3), (2, 3))),
    Case("aten::cumsum", lambda x: torch.cumsum(x, 1), (X,)),
    Case("aten::cummax", lambda x: torch.cummax(x, 1), (X,), draws=60),
    Case("aten::cummin", lambda x: torch.cummin(x, -1), ((2, 3),), draws=60),
    Case("aten::diff", lambda x: torch.diff(x), ((2, 4),)),
    Case("aten::diff", lambda x: torch.diff(x, dim=0), ((3, 2),), "axis 0"),
    Case(
        "aten::diff",
        lambda x, y: torch.diff(x, prepend=y),
        ((2, 3), (2, 1)),
        "prepend",
        misses="prepended and appended values are held",
    ),
    Case("aten::add", torch.add, (X, Y), 'biases="count"', options=RuleOptions(biases="count")),
)

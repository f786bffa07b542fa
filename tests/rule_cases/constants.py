"""Rows of operators that ask for shapes only: every field passes them, none comes out."""

from __future__ import annotations

import torch

from tests.releases import HIGH_OF_RANDINT_LIKE_AS_TENSOR

from .case import Case

A = torch.ops.aten
X = (2, 3)
MAKERS = {
    "ones_like": lambda x: torch.ones_like(x),
    "zeros_like": lambda x: torch.zeros_like(x),
    "rand_like": lambda x: torch.rand_like(x),
    "randn_like": lambda x: torch.randn_like(x),
    "randint_like": lambda x: torch.randint_like(x, 2, 9),
    "new_ones": lambda x: x.new_ones(4),
    "new_zeros": lambda x: x.new_zeros(4),
    "_efficientzerotensor": lambda x: torch._efficientzerotensor(4, dtype=x.dtype),
    "new_full": lambda x: x.new_full((4,), 3.0),
    "full_like": lambda x: torch.full_like(x, 3.0),
    "zeros": lambda x: torch.zeros(4, dtype=x.dtype),
    "ones": lambda x: torch.ones(4, dtype=x.dtype),
    "full": lambda x: torch.full((4,), 0.0, dtype=x.dtype),
    "arange": lambda x: torch.arange(4, dtype=x.dtype),
    "linspace": lambda x: torch.linspace(0, 1, 4, dtype=x.dtype),
    "eye": lambda x: torch.eye(3, dtype=x.dtype),
    "rand": lambda x: torch.rand(4, dtype=x.dtype),
    "randn": lambda x: torch.randn(4, dtype=x.dtype),
    "randint": lambda x: torch.randint(2, 9, (4,)),
    "randperm": lambda x: torch.randperm(4),
    "scalar_tensor": lambda x: A.scalar_tensor(2.0, dtype=x.dtype),
    "tril_indices": lambda x: torch.tril_indices(3, 3),
    "triu_indices": lambda x: torch.triu_indices(3, 3),
    "bernoulli_": lambda x: torch.ones_like(x).bernoulli_(0.5),
    "uniform_": lambda x: torch.ones_like(x).uniform_(),
    "normal_": lambda x: torch.ones_like(x).normal_(),
    "exponential_": lambda x: torch.ones_like(x).exponential_(),
    "one_hot": lambda x: A.one_hot(torch.tensor([0, 2, 1]), 3),
    "zero": lambda x: A.zero(x),
}

CASES = (
    *(Case(f"aten::{name}", call, (X,), dimension=6) for name, call in MAKERS.items()),
    Case("aten::_new_zeros_with_same_feature_meta", lambda x, y: A._new_zeros_with_same_feature_meta(x, y), (X, X), dimension=12),
    Case("aten::full_like", lambda x: torch.full_like(x, torch.inf), (X,), "inf", dimension=6),
    Case("aten::new_full", lambda x: x.new_full((4,), 0), (X,), "0", dimension=6),
    Case(
        "aten::linspace",
        lambda x, y: A.linspace.Tensor_Tensor(x, y, 4),
        ((), ()),
        "tensors",
        dimension=1,
        misses="the ends are held",
    ),
    Case("aten::bernoulli_", lambda x, p: torch.ones_like(x).bernoulli_(p.clamp(0.2, 0.8)), (X, X), "tensor", dimension=6),
    Case("aten::bernoulli_", lambda p: torch.ones(2, 3).bernoulli_(p / 1000), (X,), "probabilities", positive=True, dimension=0),
    Case(
        "aten::bernoulli",
        lambda x, p: A.bernoulli.Tensor(x, p / 1000),
        (X, X),
        "tensor",
        positive=True,
        dimension=6,
        misses="both are held",
    ),
    Case("aten::copy", lambda x, y: A.copy(x, y), ((2, 3, 4), (3, 1)), dimension=27),
    Case("aten::fill", lambda x: A.fill(x, 0.0), ((2, 3, 4),), dimension=24),
    Case("aten::fill", lambda x: A.fill(x, 2.0), ((2, 3, 4),), "2", dimension=24),
    Case("aten::fill", lambda x, y: A.fill.Tensor(x, y), ((2, 3), ()), "tensor"),
    Case("aten::bernoulli", lambda x: torch.bernoulli(torch.sigmoid(x)), (X,), dimension=0),
    Case("aten::bernoulli", lambda x: torch.bernoulli(x / 1000), (X,), "probabilities", positive=True, dimension=0),
    Case("aten::item", lambda x: x.sum().item(), (X,), dimension=0),
    Case("aten::_local_scalar_dense", lambda x: A._local_scalar_dense(x.sum()), (X,), dimension=0),
)

if HIGH_OF_RANDINT_LIKE_AS_TENSOR:
    CASES += (Case("aten::randint_like", lambda x, y: A.randint_like.Tensor(x, y.abs() + 9), (X, ()), "tensor", dimension=6),)

"""Rows of indexing: with positions that are known, and with ones that are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
X = (2, 3, 4)
I = torch.tensor([2, 0, 2])  # noqa: E741
ONE_FIELD = "everything that is written or written to carries one field"
AXIS = "the field is constant along the axis, also where the positions are known"

CASES = (
    Case("aten::index.Tensor", lambda x: x[:, I], (X,)),
    Case("aten::index.Tensor", lambda x: x[I.remainder(2), I], (X,), "two axes"),
    Case("aten::index.Tensor", lambda x: x[I.remainder(2), :, I], (X,), "axes apart"),
    Case("aten::index.Tensor", lambda x: x[:, torch.tensor([[0, 1], [2, 1]])], (X,), "matrix"),
    Case("aten::index.Tensor", lambda x: x[torch.tensor([[True, False, True], [False, True, True]])], (X,), "mask"),
    Case("aten::index.Tensor", lambda x: x[:, torch.tensor([True, False, True])], (X,), "mask of an axis"),
    Case(
        "aten::index.Tensor", lambda x, y: x[:, torch.argsort(y)], ((2, 3), (3,)), "positions from the run", draws=60, dimension=3
    ),
    Case("aten::index_select", lambda x: torch.index_select(x, 1, I), (X,)),
    Case("aten::gather", lambda x: torch.gather(x, 1, torch.tensor([[2, 0, 1, 1], [0, 1, 2, 2]])[:, None]), (X,), misses=AXIS),
    Case("aten::gather", lambda x: torch.gather(x, 1, torch.tensor([[0, 2, 1]])), ((2, 3),), "smaller index", misses=AXIS),
    Case("aten::take_along_dim", lambda x: torch.take_along_dim(x, torch.tensor([[2, 0], [1, 1]]), 1), ((2, 3),), misses=AXIS),
    Case("aten::take_along_dim", lambda x: torch.take_along_dim(x, torch.tensor([5, 0])), ((2, 3),), "flat", misses=AXIS),
    Case("aten::masked_select", lambda x: torch.masked_select(x, torch.tensor([True, False, True])), ((2, 3),), misses=AXIS),
    Case("aten::take", lambda x: torch.take(x, torch.tensor([5, 0])), ((2, 3),), misses=AXIS),
    Case("aten::unfold", lambda x: x.unfold(1, 2, 1), (X,)),
    Case("aten::unfold", lambda x: x.unfold(0, 2, 2), ((5, 3),), "apart"),
    Case("aten::im2col", lambda x: F.unfold(x, 2), ((1, 2, 3, 4),), misses="all positions are tied"),
    Case("aten::col2im", lambda x: F.fold(x, (3, 4), 2), ((2, 8, 6),), misses="places that fall on different pixels are tied"),
    Case("aten::col2im", lambda x: F.fold(x, (2, 4), 2, stride=2), ((1, 8, 2),), "side by side", misses="all positions are tied"),
    Case("aten::index_put", lambda x, y: A.index_put(x, [None, I[:2]], y), ((2, 3), (2, 2)), misses=ONE_FIELD),
    Case("aten::index_put", lambda x, y: A.index_put(x, [I[:2]], y, True), ((3, 2), (2, 2)), "accumulate", misses=ONE_FIELD),
    Case(
        "aten::scatter", lambda x, y: torch.scatter(x, 1, torch.tensor([[0, 2], [1, 0]]), y), ((2, 3), (2, 2)), misses=ONE_FIELD
    ),
    Case("aten::scatter", lambda x: torch.scatter(x, 1, torch.tensor([[0], [1]]), 3.0), ((2, 3),), "constant", misses=ONE_FIELD),
    Case("aten::scatter", lambda x: torch.scatter(x, 1, torch.tensor([[0], [1]]), 0.0), ((2, 3),), "zero", misses=ONE_FIELD),
    Case(
        "aten::scatter",
        lambda x, y: torch.scatter(x, 1, torch.tensor([[0, 2], [1, 0]]), y, reduce="multiply"),
        ((2, 3), (2, 2)),
        "multiply",
        dimension=4,
        misses=ONE_FIELD,
    ),
    Case(
        "aten::scatter_add",
        lambda x, y: torch.scatter_add(x, 1, torch.tensor([[0, 2], [1, 0]]), y),
        ((2, 3), (2, 2)),
        misses=ONE_FIELD,
    ),
    Case(
        "aten::scatter_reduce",
        lambda x, y: torch.scatter_reduce(x, 1, torch.tensor([[0, 2], [1, 0]]), y, "amax"),
        ((2, 3), (2, 2)),
        draws=60,
        misses=ONE_FIELD,
    ),
    Case(
        "aten::scatter_reduce",
        lambda x, y: torch.scatter_reduce(x, 1, torch.tensor([[0, 2], [1, 0]]), y, "prod"),
        ((2, 3), (2, 2)),
        "prod",
        misses=ONE_FIELD,
    ),
    Case("aten::index_add", lambda x, y: torch.index_add(x, 1, I[:2], y), ((2, 3), (2, 2)), misses=ONE_FIELD),
    Case("aten::index_copy", lambda x, y: torch.index_copy(x, 1, I[:2], y), ((2, 3), (2, 2)), misses=ONE_FIELD),
    Case("aten::index_fill", lambda x: torch.index_fill(x, 1, I[:2], 0.0), ((2, 3),), "zero", misses=ONE_FIELD),
    Case("aten::index_fill", lambda x: torch.index_fill(x, 1, I[:2], 2.0), ((2, 3),), misses=ONE_FIELD),
    Case(
        "aten::masked_scatter",
        lambda x, y: torch.masked_scatter(x, torch.tensor([True, False, True]), y),
        ((2, 3), (4,)),
        misses=ONE_FIELD,
    ),
    Case("aten::select_scatter", lambda x, y: torch.select_scatter(x, y, 1, 2), ((2, 3), (2,)), misses=ONE_FIELD),
    Case("aten::slice_scatter", lambda x, y: torch.slice_scatter(x, y, 1, 0, 4, 2), ((2, 5), (2, 2)), misses=ONE_FIELD),
    Case("aten::copy", lambda x, y: A.copy(x, y), (X, (3, 1)), dimension=27),
    Case("aten::fill", lambda x: A.fill(x, 0.0), (X,), dimension=24),
    Case("aten::fill", lambda x: A.fill(x, 2.0), (X,), "2", dimension=24),
    Case("aten::fill", lambda x, y: A.fill.Tensor(x, y), ((2, 3), ()), "tensor", misses="the value is held"),
    Case("aten::diagonal_scatter", lambda x, y: torch.diagonal_scatter(x, y), ((2, 3), (2,)), misses=ONE_FIELD),
    Case("aten::index_fill", lambda x, y: torch.index_fill(x, 1, I[:2], y), ((2, 3), ()), "tensor", misses=ONE_FIELD),
)

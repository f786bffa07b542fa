"""Rows of indexing: with positions that are known, and with ones that are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

X = (2, 3, 4)
I = torch.tensor([2, 0, 2])  # noqa: E741

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
    Case("aten::gather", lambda x: torch.gather(x, 1, torch.tensor([[2, 0, 1, 1], [0, 1, 2, 2]])[:, None]), (X,)),
    Case(
        "aten::gather",
        lambda x: x * (1 + torch.gather((x > 0).long(), 1, torch.tensor([[2, 0, 1], [1, 1, 0]]))),
        ((2, 3),),
        "integers that say where x is positive",
        dimension=6,
    ),
    Case("aten::gather", lambda x: torch.gather(x, 1, torch.tensor([[0, 2, 1]])), ((2, 3),), "smaller index"),
    Case("aten::take_along_dim", lambda x: torch.take_along_dim(x, torch.tensor([[2, 0], [1, 1]]), 1), ((2, 3),)),
    Case("aten::take_along_dim", lambda x: torch.take_along_dim(x, torch.tensor([5, 0])), ((2, 3),), "flat"),
    Case("aten::masked_select", lambda x: torch.masked_select(x, torch.tensor([True, False, True])), ((2, 3),)),
    Case("aten::take", lambda x: torch.take(x, torch.tensor([5, 0])), ((2, 3),)),
    Case("aten::unfold", lambda x: x.unfold(1, 2, 1), (X,)),
    Case("aten::unfold", lambda x: x.unfold(0, 2, 2), ((5, 3),), "apart"),
    Case("aten::im2col", lambda x: F.unfold(x, 2), ((1, 2, 3, 4),), misses="all positions are tied"),
    Case("aten::col2im", lambda x: F.fold(x, (3, 4), 2), ((2, 8, 6),), misses="places that fall on different pixels are tied"),
    Case("aten::col2im", lambda x: F.fold(x, (2, 4), 2, stride=2), ((1, 8, 2),), "side by side", misses="all positions are tied"),
)

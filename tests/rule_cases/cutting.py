"""Rows of what cuts a tensor into parts, or takes one of them."""

from __future__ import annotations

import torch

from .case import Case

A = torch.ops.aten
X = (2, 3, 4)

CASES = (
    Case("aten::select", lambda x: torch.select(x, 1, -1), (X,)),
    Case("aten::slice", lambda x: x[:, 1:3], (X,)),
    Case("aten::slice", lambda x: A.slice.Tensor(x, 2, -3, 100, 2), (X,), "steps"),
    Case("aten::narrow", lambda x: torch.narrow(x, 1, -2, 2), (X,)),
    Case("aten::split", lambda x: torch.split(x, 2, 1), (X,)),
    Case("aten::split", lambda x: torch.split(x, 2, 1)[1], (X,), "one part"),
    Case("aten::split_with_sizes", lambda x: torch.split_with_sizes(x, [1, 3], 2), (X,)),
    Case("aten::chunk", lambda x: torch.chunk(x, 2, -1), (X,)),
    Case("aten::unsafe_chunk", lambda x: torch.unsafe_chunk(x, 2, 2), (X,)),
    Case("aten::unsafe_split", lambda x: torch.unsafe_split(x, 2, 1), (X,)),
    Case("aten::tensor_split", lambda x: torch.tensor_split(x, (1, 3), 2), (X,)),
    Case("aten::tensor_split", lambda x: torch.tensor_split(x, 3, 2), (X,), "sections"),
    Case("aten::unbind", lambda x: torch.unbind(x, 1), (X,)),
    Case("aten::narrow", lambda x: A.narrow.Tensor(x, 1, torch.tensor(1), 2), (X,), "known tensor"),
    Case("aten::tensor_split", lambda x: A.tensor_split.tensor_indices_or_sections(x, torch.tensor([1, 3]), 2), (X,), "tensor"),
)

"""Rows of padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
X = (2, 3, 4)

CASES = (
    Case("aten::pad", lambda x: F.pad(x, (1, 2)), (X,)),
    Case("aten::pad", lambda x: F.pad(x, (1, 0, 0, 2)), (X,), "two axes"),
    Case("aten::pad", lambda x: F.pad(x, (-1, 1)), (X,), "crops"),
    Case("aten::pad", lambda x: F.pad(x, (1, 1), value=2.0), (X,), "by 2"),
    Case("aten::pad", lambda x: F.pad(x, (1, 1), value=-torch.inf), (X,), "by -inf"),
    Case("aten::pad", lambda x: F.pad(x, (2, 1), mode="reflect"), (X,), "reflect"),
    Case("aten::pad", lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"), ((1, 2, 3, 4),), "replicate"),
    Case("aten::pad", lambda x: F.pad(x, (1, 2), mode="circular"), (X,), "circular"),
    Case("aten::pad", lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), ((1, 4, 2, 3),), "channels"),
    Case("aten::pad", lambda x: F.pad(x, (1, 2)).sum(-1), (X,), "then summed"),
    Case("aten::pad", lambda x: F.pad(x, (1, 1)), ((2, 1),), "one position"),
    Case("aten::pad", lambda x: F.pad(torch.zeros_like(x), (1, 1), value=3.0) * x.sum(), ((2, 3),), "zeros by 3"),
    Case(
        "aten::pad", lambda x: F.pad(torch.zeros_like(x), (1, 1), mode="reflect") + F.pad(x, (1, 1)), ((2, 3),), "reflected zeros"
    ),
    Case("aten::pad", lambda x: F.pad(torch.ones(2, 2).double(), (1, 2, 0, -1)) + x, ((1, 5),), "what carries no scale"),
    Case("aten::pad", lambda x: F.pad(torch.ones(2, 2).double(), (0, 1, 0, 1)) + x, ((3, 3),), "no scale, two axes"),
    Case("aten::constant_pad_nd", lambda x: A.constant_pad_nd(x, [1, 2]), (X,)),
    Case("aten::constant_pad_nd", lambda x: A.constant_pad_nd(x, [1, 2, 0, 1], 3.0), ((2, 3),), "by 3"),
    Case("aten::reflection_pad1d", lambda x: A.reflection_pad1d(x, [1, 2]), ((2, 3, 4),)),
    Case("aten::reflection_pad2d", lambda x: A.reflection_pad2d(x, [1, 2, 0, 1]), ((1, 2, 3, 4),)),
    Case("aten::reflection_pad3d", lambda x: A.reflection_pad3d(x, [1, 0, 0, 1, 1, 1]), ((1, 2, 2, 3, 2),)),
    Case("aten::replication_pad1d", lambda x: A.replication_pad1d(x, [1, 2]), ((2, 3, 4),)),
    Case("aten::replication_pad2d", lambda x: A.replication_pad2d(x, [1, 2, 0, 1]), ((1, 2, 3, 4),)),
    Case("aten::replication_pad3d", lambda x: A.replication_pad3d(x, [1, 0, 0, 1, 1, 1]), ((1, 2, 2, 3, 2),)),
)

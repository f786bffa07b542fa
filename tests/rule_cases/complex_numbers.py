"""Rows of complex numbers."""

from __future__ import annotations

import torch

from .case import Case

X = (2, 3, 4)
_ONE_SCALE = "both parts of a complex number carry one scale"

CASES = (
    Case("aten::complex", torch.complex, (X, X), misses=_ONE_SCALE),
    Case("aten::view_as_complex", lambda x: torch.view_as_complex(x), ((3, 4, 2),), misses=_ONE_SCALE),
    Case("aten::view_as_real", lambda x, y: torch.view_as_real(torch.complex(x, y)), (X, X), misses=_ONE_SCALE),
    Case("aten::polar", lambda x, y: torch.view_as_real(torch.polar(x, y)), (X, X), positive=True),
    Case("aten::angle", torch.angle, ((2, 3),), dimension=0),
    Case("aten::atan2", torch.atan2, ((2, 3), (2, 3))),
    Case("aten::atan2", torch.atan2, ((2, 3), (3,)), "broadcast"),
    Case("aten::arctan2", torch.arctan2, ((2, 3), (2, 3))),
)

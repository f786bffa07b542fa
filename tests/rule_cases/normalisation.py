"""Rows of normalisations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fxenorm.rules import RuleOptions

from .case import Case

A = torch.ops.aten
EPS = 0.1
FROZEN = "through fixed statistics scales would pass"
WHOLE = ("_native_batch_norm_legit", "native_group_norm")
MEAN, VARIANCE = torch.tensor([0.5, -1.0, 0.2]).double(), torch.tensor([1.5, 0.7, 2.0]).double()


def _norm_rows() -> list[Case]:
    """The norms below autograd."""

    def fixed() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    statistics = {
        "native_batch_norm": lambda x, w, b: A.native_batch_norm(x, w, b, *fixed(), False, 0.1, 0.1)[0],
        "_native_batch_norm_legit": lambda x, w, b: A._native_batch_norm_legit(x, w, b, *fixed(), True, 0.1, 0.1)[0],
        "_native_batch_norm_legit_no_training": lambda *x: A._native_batch_norm_legit_no_training(*x, *fixed(), 0.1, 0.1)[0],
        "native_group_norm": lambda x, w, b: A.native_group_norm(x, w, b, 2, 3, 4, 3, 0.1)[0],
    }
    return [
        Case(f"aten::{name}", call, ((2, 3, 4), (3,), (3,)), misses="" if name in WHOLE else FROZEN)
        for name, call in statistics.items()
    ]


CASES = (
    Case("aten::batch_norm", lambda x, g, b: F.batch_norm(x, None, None, g, b, True, 0.1, EPS), ((3, 4, 2), (4,), (4,))),
    Case("aten::batch_norm", lambda x: F.batch_norm(x, None, None, None, None, True, 0.1, EPS), ((3, 4, 2),), "no affine"),
    Case(
        "aten::batch_norm",
        lambda x, g, b: F.batch_norm(x, MEAN, VARIANCE, g, b, False, 0.1, EPS),
        ((2, 3, 2), (3,), (3,)),
        "eval",
    ),
    Case(
        "aten::batch_norm", lambda x, g: F.batch_norm(x, MEAN, VARIANCE, g, None, False, 0.1, EPS), ((2, 3, 2), (3,)), "no beta"
    ),
    Case(
        "aten::batch_norm",
        lambda x, g, b, m: F.batch_norm(x, m, VARIANCE, g, b, False, 0.1, EPS),
        ((2, 3, 2), (3,), (3,), (3,)),
        "frozen",
        dimension=6,
        options=RuleOptions(batchnorm="frozen"),
    ),
    Case(
        "aten::batch_norm",
        lambda x, m: F.batch_norm(x, m, VARIANCE, None, None, False, 0.1, EPS),
        ((2, 3, 2), (3,)),
        "frozen, no affine",
        dimension=3,
        options=RuleOptions(batchnorm="frozen"),
    ),
    Case("aten::group_norm", lambda x, g, b: F.group_norm(x, 2, g, b, EPS), ((3, 4, 2), (4,), (4,))),
    Case("aten::instance_norm", lambda x, g, b: F.instance_norm(x, None, None, g, b, True, 0.1, EPS), ((2, 3, 4), (3,), (3,))),
    Case("aten::layer_norm", lambda x, g, b: F.layer_norm(x, (4,), g, b, EPS), ((2, 3, 4), (4,), (4,))),
    Case("aten::layer_norm", lambda x, g, b: F.layer_norm(x, (3, 4), g, b, EPS), ((2, 3, 4), (3, 4), (3, 4)), "two axes"),
    Case("aten::layer_norm", lambda x, g: F.layer_norm(x, (4,), g, None, EPS), ((2, 3, 4), (4,)), "no beta"),
    Case(
        "aten::layer_norm",
        lambda x, g, b: F.layer_norm(x, (4,), 1 + g, b, EPS),
        ((2, 3, 4), (4,), (4,)),
        "1 + gamma",
        offsets=(0, 1),
    ),
    Case("aten::rms_norm", lambda x, g: F.rms_norm(x, (4,), g, EPS), ((2, 3, 4), (4,))),
    Case("aten::rms_norm", lambda x, g: F.rms_norm(x, (4,), g - 1, EPS), ((2, 3, 4), (4,)), "gamma - 1", offsets=(0, -1)),
    Case("aten::_weight_norm", lambda v, g: torch._weight_norm(v, g, 0), ((3, 2, 2), (3, 1, 1))),
    Case("aten::_weight_norm_interface", lambda v, g: A._weight_norm_interface(v, g, 0), ((3, 2, 2), (3, 1, 1))),
    Case("aten::native_layer_norm", lambda x, w, b: A.native_layer_norm(x, [3], w, b, 0.1)[0], ((2, 3), (3,), (3,))),
    *_norm_rows(),
)

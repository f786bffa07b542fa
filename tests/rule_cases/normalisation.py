"""Rows of normalisations and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fxenorm.rules import RuleOptions

from .case import Case

A = torch.ops.aten
EPS = 0.1
SMALL = (1.0, 0.5, 0.3)
MEAN, VARIANCE = torch.tensor([0.5, -1.0, 0.2]).double(), torch.tensor([1.5, 0.7, 2.0]).double()


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


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
    Case("aten::scaled_dot_product_attention", _attention, ((2, 3, 4), (2, 5, 4), (2, 5, 6)), sizes=SMALL),
    Case("aten::scaled_dot_product_attention", _attention, ((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)), "heads", sizes=SMALL),
    Case(
        "aten::scaled_dot_product_attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        ((1, 4, 2, 3), (1, 2, 3, 3), (1, 2, 3, 2)),
        "grouped queries",
        sizes=SMALL,
    ),
    Case(
        "aten::scaled_dot_product_attention",
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        ((2, 3, 4), (2, 5, 4), (2, 5, 6), (3, 5)),
        "additive mask",
        sizes=SMALL,
    ),
    Case(
        "aten::scaled_dot_product_attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(3, 5).tril(2).bool()),
        ((2, 3, 4), (2, 5, 4), (2, 5, 6)),
        "boolean mask",
        sizes=SMALL,
    ),
    Case(
        "aten::scaled_dot_product_attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ((1, 4, 3), (1, 4, 3), (1, 4, 2)),
        "causal",
        sizes=SMALL,
        misses="scores that the mask hides and first rows are held too",
    ),
)

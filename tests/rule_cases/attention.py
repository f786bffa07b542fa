"""Rows of attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
SMALL = (1.0, 0.5, 0.3)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


CASES = (
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
    Case(
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        lambda q, k, v: A._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0],
        ((1, 2, 3, 4),) * 3,
        sizes=SMALL,
    ),
)

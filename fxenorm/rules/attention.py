"""Attention: scores are held by the softmax, so scales of queries and keys cancel; the values' pass to the output."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import numpy as np

from ..field import ScaleField
from ..field.structure import select_positions
from .call import Call, Field
from .laws import contract
from .registry import scale_rule


@scale_rule("aten::scaled_dot_product_attention", family="contraction")
def scaled_dot_product_attention(call: Call) -> Field:
    """y[.., t, e] = sum_s softmax(sum_d q[.., t, d] k[.., s, d] + mask)[.., t, s] v[.., s, e]."""
    query, key, value = call.field("query"), call.field("key"), call.field("value")
    if call["enable_gqa"]:
        heads = query.shape[-3]
        key, value = (
            select_positions(f, len(f.shape) - 3, np.repeat(np.arange(f.shape[-3]), heads // f.shape[-3])) for f in (key, value)
        )
    batch = ascii_lowercase[: len(query.shape) - 2]
    key_batch, value_batch = batch[len(batch) - (len(key.shape) - 2) :], batch[len(batch) - (len(value.shape) - 2) :]
    scores = contract(call, query, batch + "TD", key, key_batch + "SD", batch + "TS")
    call.zero(scores)
    for name in ("attn_mask", "attn_bias"):
        if call[name] is not None:
            call.zero(call[name])
    return contract(call, ScaleField(scores.shape), batch + "TS", value, value_batch + "SE", batch + "TE")


@scale_rule(
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    family="contraction",
)  # fmt: skip
def fused_attention(call: Call) -> Any:
    """The same as it is called below autograd, with the logarithms of the sums, which are held."""
    y = scaled_dot_product_attention(call)
    return (y, *(ScaleField(tuple(other.shape)) if hasattr(other, "shape") else None for other in call.output[1:]))

"""The memory behind a tensor: plain memory that compiled code may read and write by its address, or something else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["has_plain_memory"]

_PLAIN_CLASSES = frozenset({Tensor, nn.Parameter})
"""Every other class may keep its entries elsewhere, as several tensors, in other units, or not at all."""


def has_plain_memory(tensor: Tensor) -> bool:
    """Whether a tensor's entries lie in memory as its dtype, strides and address say.

    False for subclasses (of two tensors, quantised ones, fake ones), sparse and nested layouts, tensors that stand for their
    conjugate or negative, tensors without a device, and those whose storage has been freed.

    Example:
        >>> has_plain_memory(torch.ones(2)), has_plain_memory(torch.ones(2).to_sparse())
        (True, False)
    """
    if type(tensor) not in _PLAIN_CLASSES or tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return False
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor():
        return False
    return tensor.numel() == 0 or tensor.data_ptr() != 0

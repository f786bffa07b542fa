"""Picks the outputs that `verify` compares: exactly those that the plan holds, each as a tensor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..trace.outputs import chosen
from ..trace.reachable import Leaf
from .subject import Subject

__all__ = ["compared_leaves", "numbers_of"]

_DECIMAL = re.compile(r"[-+]?\d+\.\d*(?:[eE][-+]?\d+)?")


def compared_leaves(subject: Subject, leaves: Sequence[Leaf]) -> list[Leaf]:
    """Returns the leaves of one call that the plan holds; of attributes and arguments only those that it knows."""
    known = {use.path for use in subject.symmetry.outputs if use.held}
    held = chosen(leaves, subject.analysis.options.outputs)
    named = subject.analysis.options.outputs is not None
    return [
        leaf
        for leaf, hold in zip(leaves, held, strict=True)
        if hold and leaf.kind != "unsearched" and (named or leaf.returned or leaf.path in known)
    ]


def numbers_of(leaf: Leaf) -> Tensor:
    """Returns the numbers in a leaf, float64 unless it is a floating-point tensor; of a text the decimal numbers."""
    value: Any = leaf.value
    found: Tensor
    if leaf.kind == "text":
        value = [float(number) for number in _DECIMAL.findall(value)] if isinstance(value, str) else []
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value, dtype=torch.complex128, device="cpu")
        except (TypeError, ValueError, RuntimeError):  # an array of texts or records
            value = torch.zeros(0, dtype=torch.float64, device="cpu")
    found = value.to_dense() if value.layout is not torch.strided else value
    if found.is_complex():
        found = torch.view_as_real(found.resolve_conj())
    return found if found.is_floating_point() else found.double()

"""The ``--input`` option: a shape and a data type, without importing torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

__all__ = ["DTYPES", "InputSpec", "parse_input"]

DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_ALIASES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16"}


@dataclass(frozen=True)
class InputSpec:
    """Shape and data type of one example input."""

    shape: tuple[int, ...]
    dtype: str

    def tensor(self) -> Any:
        """Standard normal numbers, or ones where the type has no fractions: a valid index, and true in a mask."""
        import torch

        dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(self.shape, dtype=dtype, device="cpu")
        return torch.ones(self.shape, dtype=dtype, device="cpu")


def parse_input(text: str) -> InputSpec:
    """Read ``2x3x32x32`` or ``2x128:int64``.

    Raises:
        ValueError: the text has another form; the message says what is wrong.

    Example:
        >>> parse_input("2x128:int64")
        InputSpec(shape=(2, 128), dtype='int64')
    """
    sizes, colon, dtype = text.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", sizes):
        raise ValueError(f"{text!r}: expected sizes joined by x, as in 2x3x32x32 or 2x128:int64")
    dtype = dtype.removeprefix("torch.") if colon else "float32"
    dtype = _ALIASES.get(dtype, dtype)
    if dtype not in DTYPES:
        raise ValueError(f"{text!r}: unknown data type {dtype!r}, expected one of {', '.join(DTYPES)}")
    shape = tuple(int(size) for size in sizes.split("x"))
    if 0 in shape:
        raise ValueError(f"{text!r}: every size must be at least 1")
    return InputSpec(shape, dtype)

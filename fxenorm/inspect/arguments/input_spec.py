"""The ``--input`` option: a name, a shape and a data type, without importing torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DTYPES", "InputSpec", "as_arguments", "parse_input"]

DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_ALIASES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16"}


@dataclass(frozen=True)
class InputSpec:
    """Shape and data type of one example input, and its name where it is a keyword argument."""

    shape: tuple[int, ...]
    dtype: str
    name: str = ""

    def tensor(self) -> Any:
        """Standard normal numbers, or ones where the type has no fractions: a valid index, and true in a mask."""
        import torch

        dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(self.shape, dtype=dtype, device="cpu")
        return torch.ones(self.shape, dtype=dtype, device="cpu")


def as_arguments(specs: Sequence[InputSpec]) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
    """Returns the tensors of some inputs as (positional, keyword) arguments of forward; None where there are none."""
    positional = tuple(spec.tensor() for spec in specs if not spec.name)
    named = {spec.name: spec.tensor() for spec in specs if spec.name}
    return positional or None, named or None


def parse_input(text: str) -> InputSpec:
    """Read ``2x3x32x32``, ``2x128:int64`` or ``mask=2x7:bool``.

    Raises:
        ValueError: the text has another form; the message says what is wrong.

    Example:
        >>> parse_input("2x128:int64")
        InputSpec(shape=(2, 128), dtype='int64', name='')
    """
    name, equals, rest = text.rpartition("=")
    if equals and not name.isidentifier():
        raise ValueError(f"{text!r}: {name!r} is no name of an argument; expected NAME=SHAPE, as in mask=2x7:bool")
    sizes, colon, dtype = rest.partition(":")
    if not re.fullmatch(r"[0-9]+(x[0-9]+)*", sizes):
        raise ValueError(f"{text!r}: expected sizes joined by x, as in 2x3x32x32, 2x128:int64 or mask=2x7:bool")
    dtype = dtype.removeprefix("torch.") if colon else "float32"
    dtype = _ALIASES.get(dtype, dtype)
    if dtype not in DTYPES:
        raise ValueError(f"{text!r}: unknown data type {dtype!r}, expected one of {', '.join(DTYPES)}")
    shape = tuple(int(size) for size in sizes.split("x"))
    if 0 in shape:
        raise ValueError(f"{text!r}: every size must be at least 1")
    return InputSpec(shape, dtype, name)

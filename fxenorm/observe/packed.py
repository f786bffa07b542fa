"""Arrays as text for JSON, to the last bit."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["packed", "unpacked", "unpacked_tensor"]


def packed(values: Any, kind: str) -> str:
    """Returns an array of numpy, or a tensor on the CPU, as text.

    Args:
        values: the array.
        kind: numpy's name of the type that is stored, as "<f8".
    """
    array = values.numpy() if isinstance(values, Tensor) else values
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array, dtype=kind).tobytes(), 1)).decode("ascii")


def unpacked(text: str, kind: str) -> Any:
    """Returns the flat array of a text that `packed` made."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=kind).astype(kind[1:])


def unpacked_tensor(text: str) -> Tensor:
    """Returns the flat float64 tensor of a text that `packed` made of one."""
    return torch.from_numpy(unpacked(text, "<f8"))

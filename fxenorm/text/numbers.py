"""`LayerNorms`: tensors by layer that print as numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LayerNorms"]


class LayerNorms(dict[str, Tensor]):
    """A dict of 0-d tensors, which stay on their device; printing it waits for them once and shows plain numbers.

    Example:
        >>> LayerNorms({"fc": torch.tensor(2.5, dtype=torch.float64, device="cpu")})
        {'fc': 2.5}
    """

    def __repr__(self) -> str:
        """Returns the dict with numbers of six digits."""
        if not self:
            return "{}"
        values = torch.stack([value.detach().double() for value in self.values()]).tolist()
        return "{" + ", ".join(f"{name!r}: {value:.6g}" for name, value in zip(self, values, strict=True)) + "}"

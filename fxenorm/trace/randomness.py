"""The generators of random numbers that a forward pass may draw from."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["set_seeds"]


def set_seeds(seed: int | None) -> None:
    """Seeds Python's, numpy's and torch's global generators; None leaves them."""
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)

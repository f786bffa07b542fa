"""Statistics of one activation by channel, summed up batch by batch: no activation is kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ChannelStatistics"]


class ChannelStatistics:
    """Largest, smallest, mean square and a high quantile of the absolute value, by channel, over all that `add` was given.

    Args:
        channels: the number of channels.
        quantile: the share of the entries of a batch that the quantile bounds.
        device: where the activation is.

    Attributes:
        entries: number of entries that each channel was given.
    """

    def __init__(self, channels: int, quantile: float, device: torch.device) -> None:
        self.entries = 0
        self._quantile = quantile
        self._minimum = torch.full((channels,), math.inf, dtype=torch.float64, device=device)
        self._maximum = torch.full((channels,), -math.inf, dtype=torch.float64, device=device)
        self._squares = torch.zeros(channels, dtype=torch.float64, device=device)
        self._high = torch.zeros(channels, dtype=torch.float64, device=device)
        self._slopes: Tensor | None = torch.zeros_like(self._squares)

    def add(self, activation: Tensor, axis: int) -> None:
        """Takes in one activation, whose channels lie along `axis`; nothing waits for the device."""
        rows = activation.detach().movedim(axis, 0).flatten(1) if activation.ndim > 1 else activation.detach().unsqueeze(1)
        count = rows.shape[1]
        if not count:
            return
        device = self._squares.device
        self.entries += count
        self._minimum = torch.minimum(self._minimum, rows.amin(1).to(device, torch.float64))
        self._maximum = torch.maximum(self._maximum, rows.amax(1).to(device, torch.float64))
        self._squares += torch.linalg.vector_norm(rows, 2, 1, dtype=torch.float64).square().to(device)
        # The nearest rank: an entry itself, so that it moves as the entries do.
        sizes = rows.abs() if rows.dtype in (torch.float32, torch.float64) else rows.float().abs()
        high = sizes.kthvalue(max(1, math.ceil(self._quantile * count)), 1).values
        self._high = torch.maximum(self._high, high.to(device, torch.float64))

    def add_slopes_of(self, activation: Tensor, axis: int) -> None:
        """Takes in the squared derivatives by an activation in each backward pass to come; those of none say nothing."""
        if not activation.requires_grad:
            self._slopes = None
            return

        def hook(gradient: Tensor) -> None:
            """Adds the derivatives of one pass."""
            rows = gradient.detach().movedim(axis, 0).flatten(1) if gradient.ndim > 1 else gradient.detach().unsqueeze(1)
            if self._slopes is not None:
                found = torch.linalg.vector_norm(rows, 2, 1, dtype=torch.float64).square()
                self._slopes = self._slopes + found.to(self._slopes.device)

        activation.register_hook(hook)  # type: ignore[no-untyped-call]

    def mean_slopes(self, entries: int) -> Tensor | None:
        """Returns (channels,) the sum of squared derivatives over a number of outputs' entries; None: some are not known."""
        return None if self._slopes is None or not entries else (self._slopes / entries).cpu()

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns minimum, maximum, mean square and quantile, each (channels,) in float64 on the CPU."""
        found = (self._minimum, self._maximum, self._squares / self.entries, self._high)
        minimum, maximum, mean_square, high = (value.cpu() for value in found)
        return minimum, maximum, mean_square, high

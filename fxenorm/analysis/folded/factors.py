"""Factors of weights with a BatchNorm folded in: of all norms at once, and in place where they are asked for at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels.program import as_float
from ...symmetry.symmetry import NormFold

__all__ = ["FoldBatch", "RepeatedFactors"]


class FoldBatch:
    """The BatchNorms that are folded on one device, whose factors are worked out all at once.

    What does not change is copied to the device here: a copy at each step would have the host wait for it.

    Args:
        folds: the norms of the folded weights.
        channels: by weight, its output channel by entry, broadcastable to it.
        device: where the norms are.
    """

    def __init__(self, folds: Sequence[NormFold], channels: Sequence[Tensor], device: torch.device) -> None:
        self._folds, self._channels, self._device = folds, channels, device
        self._index: Tensor | None = None
        self._eps: Tensor | None = None

    def values(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Returns (entries,) the factors now, those of one weight after those of another.

        Args:
            tensors: the model's parameters and buffers by name.
        """
        variances = [tensors[fold.variance] for fold in self._folds]
        wide = as_float(torch.cat(variances), self._device)
        if self._index is None or self._eps is None:
            sizes = [variance.numel() for variance in variances]
            starts = np.cumsum([0, *sizes[:-1]]).tolist()
            places = [one.reshape(-1) + start for one, start in zip(self._channels, starts, strict=True)]
            self._index = torch.cat(places).to(self._device)
            eps = np.repeat([fold.eps for fold in self._folds], sizes)
            self._eps = as_float(torch.from_numpy(eps.astype(np.float64)), self._device)
        signed = (wide + self._eps).rsqrt()
        if any(fold.gamma for fold in self._folds):
            both = zip(self._folds, variances, strict=True)
            signed = signed * torch.cat([tensors[fold.gamma] if fold.gamma else torch.ones_like(one) for fold, one in both])
        return signed.abs()[self._index]

    def by_weight(self, values: Tensor) -> list[Tensor]:
        """Returns views of such values, each broadcastable to its weight."""
        parts = torch.split(values, [one.numel() for one in self._channels])
        return [part.view(one.shape) for part, one in zip(parts, self._channels, strict=True)]


class RepeatedFactors:
    """The factors of all counted tensors, in memory that stays where it is.

    Args:
        batches: the norms, and the values of each, of which the factors are views.
        factors: by counted tensor; None: there is none.
    """

    def __init__(self, batches: Sequence[tuple[FoldBatch, Tensor]], factors: list[Tensor | None]) -> None:
        self._batches, self._factors = batches, factors

    @torch.no_grad()
    def now(self, tensors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """Returns the same tensors each time, with the factors of now.

        Args:
            tensors: the model's parameters and buffers by name.
        """
        for batch, values in self._batches:
            values.copy_(batch.values(tensors))
        return self._factors

"""The entries of one tensor of a term with their exponents, and what is counted of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...analysis.attained.basis import Basis
from ...analysis.counted import CountedTensor
from ...distributed.layout import Layout
from ...field import Term as FieldTerm
from ...kernels.terms import normalise
from ...weights.shared.sums import Sums
from ..parts import Entries

__all__ = ["Item", "counted_entries", "log_still", "powers"]


@dataclass(frozen=True)
class Item:
    """The entries of one tensor: their shape, what makes them, and their exponents.

    Attributes:
        shape, terms: of the whole tensor.
        masses: makes the entries that this process holds.
        layout: which part of the tensor that is; None: all of it.
    """

    shape: tuple[int, ...]
    masses: Callable[[], Tensor]
    terms: tuple[FieldTerm, ...]
    layout: Layout | None = None

    @property
    def counts(self) -> bool:
        """Whether this process has entries that no other counts."""
        return self.layout is None or (self.layout.counts and not self.layout.is_empty)

    def within(self, basis: Basis | None) -> tuple[FieldTerm, ...]:
        """Returns the exponents over the places of a basis, in normal form; () where nothing moves it."""
        return normalise(self.terms if basis is None else basis.terms(self.terms), len(self.shape))

    def here(self, basis: Basis | None) -> tuple[FieldTerm, ...]:
        """Returns the same for the entries that this process holds."""
        found, layout = self.within(basis), self.layout
        return found if layout is None else tuple((coefficient, layout.cut(ids)) for coefficient, ids in found)


def powers(item: CountedTensor, value: Tensor, factor: Tensor | None, p: float) -> Tensor:
    """Returns ω |w|^p of the entries of a counted tensor."""
    with torch.no_grad():
        size = (value.to(torch.float64) + item.offset).abs()
        return (size if factor is None else size * factor).pow(p) * math.exp(item.log_weight)


def log_still(items: Sequence[Item], basis: Basis | None, sums: Sums) -> float:
    """Returns the log of the sum of all entries of tensors that no variable moves, on all processes."""

    def own() -> Tensor:
        """Sums those of this process."""
        total = sum(float(item.masses().sum()) for item in items if item.counts and not item.within(basis))
        return torch.tensor([total], dtype=torch.float64, device="cpu")

    total = float(sums.total(own, 1))
    return math.log(total) if 0 < total < math.inf else -math.inf


def counted_entries(items: Sequence[Item], power: float, count: int, basis: Basis | None, sums: Sums) -> Entries:
    """Returns the number of entries above zero, the sums of their exponents, and that of their logarithms, of all processes."""

    def own() -> Tensor:
        """Adds up those of this process: the number, the logarithms, and by variable the exponents."""
        found = torch.zeros(count + 3, dtype=torch.float64, device="cpu")
        for item in filter(lambda item: item.counts, items):
            values = item.masses().to("cpu", torch.float64).log()
            present = values.isfinite().to(torch.float64)
            found[0] += present.sum()
            found[1] += values.nan_to_num_(0.0, 0.0, 0.0).sum()
            for coefficient, ids in item.here(basis):
                axes = [axis for axis in range(present.ndim) if ids.shape[axis] == 1]
                sums_of_axes = present.sum(axes, keepdim=True) if axes else present
                places = torch.from_numpy(np.where(ids < 0, count, ids)).reshape(-1)
                found.index_add_(0, places + 2, power * coefficient * sums_of_axes.reshape(-1))
        return found

    total = sums.total(own, count + 3)
    return Entries(round(float(total[0])), total[2:-1], float(total[1]))

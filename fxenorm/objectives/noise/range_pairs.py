"""Pairs of a range and a variable that moves entries of it: sums over their entries, and how the range follows the variable."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantisers import Quantised, over_equal_axes

__all__ = ["RangePairs"]


class RangePairs:
    """The pairs of one tensor that is rounded.

    Args:
        tensor: its ranges and exponents.

    Attributes:
        ranges, variables: (pairs,) of each pair; the number of variables = fixed.
    """

    def __init__(self, tensor: Quantised, num_scales: int) -> None:
        self._tensor, self._count = tensor, num_scales + 1
        self._keys = [tensor.ranges * self._count + ids for _, ids in tensor.terms]
        flat = torch.cat([tensor.ranges.new_zeros(0), *(keys.reshape(-1) for keys in self._keys)])
        found, places = torch.unique(flat, return_inverse=True)
        self._places = places.split([keys.numel() for keys in self._keys])
        self.ranges, self.variables = found.div(self._count, rounding_mode="floor"), found % self._count

    def _by_term(self, values: Tensor) -> list[Tensor]:
        """Returns for each term (pairs,) the sum of some values of the tensor's shape over the entries that it moves."""
        zero = values.new_zeros(self.ranges.numel())
        parts = [over_equal_axes(values, keys, torch.sum).reshape(-1) for keys in self._keys]
        return [zero.index_add(0, places, part) for places, part in zip(self._places, parts, strict=True)]

    def sums(self, values: Tensor) -> Tensor:
        """Returns (pairs,) the sum of some values of the tensor's shape, times the exponents of the variable."""
        total = values.new_zeros(self.ranges.numel())
        for (coefficient, _), found in zip(self._tensor.terms, self._by_term(values), strict=True):
            total = total + coefficient * found
        return total

    def together(self) -> list[tuple[float, Tensor, Tensor]]:
        """Returns of terms that meet in one variable twice the product of their coefficients, where, and the variable's ids."""
        terms, found = self._tensor.terms, []
        for number, (coefficient, ids) in enumerate(terms):
            for other, others in terms[number + 1 :]:
                same = ids == others
                if bool((same & (ids < self._count - 1)).any()):
                    found.append((2.0 * coefficient * other, same, torch.where(same, ids, self._count - 1)))
        return found

    def bounds(self, there: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (pairs,) the least and the largest exponent of the variable among some entries of the range.

        Args:
            there: bool, of the tensor's shape: these entries. Without any, the least is infinite and the largest minus infinite.
        """
        counts = self._by_term(there.to(torch.float64))
        others = self._tensor.totals(there.to(torch.float64))[self.ranges]
        for count in counts:
            others = others - count
        exponents = [float(coefficient) for coefficient, _ in self._tensor.terms] + [0.0]
        present = torch.stack([*counts, others]) > 0
        values = torch.tensor(exponents, dtype=torch.float64, device=there.device)[:, None]
        return torch.where(present, values, torch.inf).amin(0), torch.where(present, values, -torch.inf).amax(0)

"""The parts of `balance` that an executor may work out for many tensors together, not one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

__all__ = ["JointTables", "Shares"]

Shares = list[tuple[Tensor, Tensor]]
"""Parts of a product with the Hessian: variables, K for "fixed", and what is added to each."""


class JointTables(Protocol):
    """Blocks of rows by columns whose products an executor works out together.

    Attributes:
        members: their positions in the program.
    """

    @property
    def members(self) -> frozenset[int]:
        """Returns the positions of these blocks in the program."""

    def shares_at(self, log_scales: Tensor, scale: Tensor) -> Callable[[Tensor], Shares]:
        """Returns a function from a vector (K + 1,) to the members' shares of the Hessian's product with it.

        Args:
            log_scales: (K + 1,) where; 0 for "fixed" at the end.
            scale: (K + 1,) by what each row is divided, a natural logarithm.
        """

    def totals_at(self, log_scales: Tensor, labels: Tensor) -> Mapping[int, tuple[Tensor, Tensor]]:
        """Returns, by block, logs of its totals by combination of labels, and the combinations (terms, E).

        Args:
            log_scales: (K + 1,) where; 0 for "fixed" at the end.
            labels: (K + 1,) int64.
        """

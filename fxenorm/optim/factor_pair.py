"""Second moments that are kept as row and column means: how the two factors follow a rescaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OptimizerError

__all__ = ["FactorPair", "terms_of_factor"]

Terms = tuple[tuple[int, Tensor], ...]
"""(coefficient, ids of the parameter's number of axes, size 1 where constant)."""


def terms_of_factor(terms: Terms, axis: int, name: str) -> Terms:
    """Returns the exponents of D that belong to the factor which is constant along `axis`.

    Args:
        terms: the parameter's exponents: (coefficient, ids of the parameter's number of axes, size 1 where constant).
        axis: -1 for rows, which also take terms that vary along neither of the last two axes, or -2 for columns.
        name: the parameter's, for the message.

    Returns:
        Exponents that broadcast to the factor.

    Raises:
        OptimizerError: a term varies along both axes, so that D is no product of rows and columns.
    """
    found = []
    for coefficient, ids in terms:
        along_rows, along_columns = ids.shape[-2] > 1, ids.shape[-1] > 1
        if along_rows and along_columns:
            raise OptimizerError(
                f"the rescaling of {name!r} is not a factor for rows times one for columns, so Adafactor's row_var and col_var "
                "cannot follow it exactly: nothing was rescaled. Pass state='reset' to drop its state, state='keep' to leave "
                f"it as it is, or fxenorm.analyze(..., exclude={name!r})"
            )
        if along_columns == (axis == -2):
            found.append((coefficient, ids))
    return tuple(found)


@dataclass(frozen=True)
class FactorPair:
    """Rows and columns that stand for row * column / mean(row): multiplied by factors of their own, the mean has to follow.

    Attributes:
        rows: (..., r, 1).
        columns: (..., 1, c).
    """

    rows: Tensor
    columns: Tensor

    def means(self) -> tuple[Tensor, Tensor]:
        """Returns the means of rows and of columns."""
        return _mean(self.rows, -2), _mean(self.columns, -1)

    @torch.no_grad()
    def follow(self, before: Sequence[Tensor]) -> None:
        """Multiplies rows and columns by their `ratios`, given the means of before."""
        rows, columns = self.ratios(before)
        self.rows.mul_(rows)
        self.columns.mul_(columns)

    def ratios(self, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the factors of rows and of columns: each is the growth of the other's mean, given the means of before.

        With V = row * column / mean, the new rows are the means of V' = V / D^2 over columns, and the new columns those over
        rows, so that V' is what they stand for.
        """
        (rows_before, columns_before), (rows_after, columns_after) = before, self.means()
        return _ratio(columns_after, columns_before), _ratio(rows_after, rows_before)


def _mean(factor: Tensor, axis: int) -> Tensor:
    """Returns the mean along an axis, in at least float32."""
    return factor.mean(axis, keepdim=True, dtype=torch.promote_types(factor.dtype, torch.float32))


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    """after / before, 1 where there is nothing yet."""
    return torch.where(before > 0, after / before, torch.ones_like(after))

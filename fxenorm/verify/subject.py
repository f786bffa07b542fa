"""`Subject`: the model and the plan that are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..analysis.analysis import Analysis
from ..symmetry.symmetry import Symmetry

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """A model, its analysis, and the function that rescales a copy of it.

    Attributes:
        analysis: the findings on the model.
        model: the module, without wrappers.
        rescale: multiplies the tensors of a module of the same names by (num_scales,) log-scales, in place.
    """

    analysis: Analysis
    model: nn.Module
    rescale: Callable[[nn.Module, Tensor], None]

    @property
    def symmetry(self) -> Symmetry:
        """The graph half's answer, as plain data."""
        return self.analysis.symmetry

    @property
    def num_scales(self) -> int:
        """Number of variables: the length of ``log_scales``."""
        return self.symmetry.num_scales

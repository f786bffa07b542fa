"""`ObservedWeight`: a layer's weight with the derivatives of the outputs by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..analysis.serialise import known_ids
from ..field import Term
from .observation import log_factors
from .packed import packed, unpacked, unpacked_tensor

__all__ = ["Layout", "ObservedWeight"]

Layout = tuple[int, int, int]
"""Of a weight: the axis of the output channels, that of the input channels, and the groups that lie along the latter.

Where the axes are negative, the weight is a stack of matrices along the axes before, as those of experts."""


@dataclass(frozen=True)
class ObservedWeight:
    """The weight of a layer, and by entry the mean squared derivative of the outputs; float64 on the CPU.

    A layer is a linear one, a convolution, or a parameter that functions multiply by activations.

    Attributes:
        layer: path of the module; of a parameter that functions alone read, its name.
        name: of the parameter.
        layout: the axis of the output channels, that of the input channels, and the groups along the latter: (0, 1, 1), of a
            transposed convolution (1, 0, groups), of a stack of matrices (-1, -2, 1) or (-2, -1, 1).
        values: the weight, of the parameter's shape.
        squared_derivative: the mean over all entries of the outputs of the squared derivative by each entry: so large is the
            mean squared error of the outputs where this entry gets an error with mean square 1. By random signs, so that single
            entries are known roughly and sums over many of them well.
        terms: the exponents, as in `Plan.exponents`, as numpy arrays; empty where no rescaling moves it.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fxenorm.analyze(model).observe([torch.ones(2, 4)], derivatives=True).weights
        (<ObservedWeight 0.weight: (8, 4)>, <ObservedWeight 2.weight: (2, 8)>)
    """

    layer: str
    name: str
    layout: Layout
    values: Tensor
    squared_derivative: Tensor
    terms: tuple[Term, ...] = ()

    def rescaled(self, log_scales: Tensor) -> ObservedWeight:
        """Returns the weight after a rescaling: times exp(a . s), its squared derivatives divided by the square.

        Args:
            log_scales: (num_scales,) natural logarithms.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> weight = fxenorm.analyze(model).observe([torch.ones(2, 4)], derivatives=True).weights[0]
            >>> weight.rescaled(torch.ones(8))
            <ObservedWeight 0.weight: (8, 4)>
        """
        factor = log_factors(self.terms, tuple(self.values.shape), log_scales).exp()
        slopes = self.squared_derivative * factor.pow(-2)
        return dataclasses.replace(self, values=self.values * factor, squared_derivative=slopes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the weight as a JSON-compatible dict; see `from_dict`.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> list(fxenorm.analyze(model).observe([torch.ones(2, 4)], derivatives=True).weights[0].to_dict())
            ['place', 'shape', 'values', 'terms']
        """
        return {
            "place": [self.layer, self.name, list(self.layout)],
            "shape": list(self.values.shape),
            "values": [packed(self.values, "<f8"), packed(self.squared_derivative, "<f8")],
            "terms": [[int(coefficient), list(ids.shape), packed(ids, "<i8")] for coefficient, ids in self.terms],
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], num_scales: int) -> ObservedWeight:
        """Returns a stored weight.

        Args:
            row: the dict of `to_dict`.
            num_scales: number of variables of the plan.

        Raises:
            ValueError: its parts do not fit together.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> weight = fxenorm.analyze(model).observe([torch.ones(2, 4)], derivatives=True).weights[0]
            >>> fxenorm.ObservedWeight.from_dict(weight.to_dict(), 8)
            <ObservedWeight 0.weight: (8, 4)>
        """
        layer, name, (output, inputs, groups) = row["place"]
        shape = [int(size) for size in row["shape"]]
        values, slopes = (unpacked_tensor(text).reshape(shape) for text in row["values"])
        terms = tuple((int(coefficient), unpacked(text, "<i8").reshape(size)) for coefficient, size, text in row["terms"])
        for _, ids in terms:
            if ids.ndim != len(shape) or any(one not in (1, size) for one, size in zip(ids.shape, shape, strict=True)):
                raise ValueError(f"ids of shape {ids.shape} do not fit {name!r} of shape {tuple(shape)}")
            known_ids(ids, num_scales, name)
        return cls(str(layer), str(name), (int(output), int(inputs), int(groups)), values, slopes, terms)

    def __repr__(self) -> str:
        """Returns one line: the parameter and its shape."""
        return f"<ObservedWeight {self.name}: {tuple(self.values.shape)}>"

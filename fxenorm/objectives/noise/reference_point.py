"""The log-scales at which the entries of all that is rounded are as even as can be: where flat directions are left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..quantisers import Quantised

__all__ = ["one_sided", "reference_point"]

_PULL = 1e-6
"""Weight of |s|^2, which keeps what no entry determines where it is."""

_MOST, _PRECISION = 300, 1e-9
"""Iterations of conjugate gradients at most, and the relative residual at which they end."""


def one_sided(quantisers: Sequence[Quantised], num_scales: int) -> Tensor:
    """Returns (num_scales,) bool: the variables along which noise falls for ever, as those of channels that are dead.

    Args:
        quantisers: all that is rounded.
        num_scales: number of variables.
    """
    rises = torch.zeros((2, num_scales + 1), dtype=torch.float64, device="cpu")
    for tensor in quantisers:
        for term in tensor.terms:
            alone = dataclasses.replace(tensor, terms=(term,))
            up = int(term[0] > 0)
            alone.collect((tensor.sizes > 0).to(torch.float64) * abs(term[0]) / term[0], rises[up])
            alone.collect((tensor.slopes > 0).to(torch.float64) * abs(term[0]) / term[0], rises[1 - up])
    return (rises[0, :-1] > 0) != (rises[1, :-1] > 0)


def reference_point(quantisers: Sequence[Quantised], num_scales: int) -> Tensor:
    """Returns (num_scales,) log-scales at which the logarithms of the entries of each tensor have the least variance.

    It is the same point whatever rescaling of a model one starts from, but for shifts of whole tensors, which stay, as do
    variables along which noise falls for ever.

    Args:
        quantisers: all that is rounded; entries of 0 play no part.
        num_scales: number of variables.
    """
    free = (~one_sided(quantisers, num_scales)).to(torch.float64)
    alive = [(one, (one.sizes > 0).to(torch.float64)) for one in quantisers if bool((one.sizes > 0).any())]

    def spread(values: Callable[[Quantised], Tensor]) -> Tensor:
        """Returns the derivative of half the variances by the log-scales, of some values by entry."""
        total = torch.zeros(num_scales + 1, dtype=torch.float64, device="cpu")
        for tensor, there in alive:
            found = values(tensor) * there
            found = (found - there * (found.sum() / there.sum())) / there.numel() ** 0.5
            tensor.collect(found, total)
        return free * total[:-1]

    def product(vector: Tensor) -> Tensor:
        """Returns the second derivative times a vector."""
        padded = torch.cat([vector, vector.new_zeros(1)])
        return spread(lambda tensor: tensor.moved(padded)) + _PULL * vector

    wanted = -spread(lambda tensor: torch.where(tensor.sizes > 0, tensor.sizes.log(), 0.0))
    return _solved(product, wanted)


def _solved(product: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """Returns the solution of a symmetric positive system by conjugate gradients."""
    found, rest = torch.zeros_like(wanted), wanted.clone()
    direction, size = rest.clone(), rest.square().sum()
    least = _PRECISION**2 * size
    for _ in range(_MOST):
        if bool(size <= least):
            break
        image = product(direction)
        length = size / (direction * image).sum()
        found, rest = found + length * direction, rest - length * image
        smaller = rest.square().sum()
        direction, size = rest + smaller / size * direction, smaller
    return found

"""`canonical`: the one copy of a model that stands for all models which differ from it by a rescaling."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..symmetry.symmetry import NormFold
from ..trace.unwrap import unwrap
from .analyze import analyze

__all__ = ["canonical"]


def canonical(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    p: float = 2.0,
    tol: float = 1e-9,
) -> nn.Module:
    """Returns a copy of a model in eval mode at its least norm, each BatchNorm folded where it can be.

    Two models of one function that differ by a rescaling alone become the same weights, to rounding: also where scales stand
    in front of a BatchNorm, which `Plan.balance` leaves alone. Permutations and signs of channels remain as they are. With
    p = inf or weights of 16 bits the answer is not unique.

    Args:
        model: the module; it is left as it is. Frozen parameters of the copy move too.
        example_inputs, example_kwargs: as in `fxenorm.analyze`.
        p: exponent of the norm.
        tol: as in `Plan.balance`.

    Returns:
        The copy. A BatchNorm that was folded is an ``Identity``, and the layer in front of it has a bias.

    Raises:
        OptionError, ExampleInputsError, TraceError: as `fxenorm.analyze`.

    Example:
        >>> one = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
        >>> other = copy.deepcopy(one)
        >>> plan = analyze(other, torch.ones(2, 4, dtype=torch.float64))
        >>> plan.rescale(torch.linspace(-1, 1, 8, dtype=torch.float64))
        >>> pairs = zip(canonical(one).parameters(), canonical(other).parameters())
        >>> all(torch.allclose(a, b) for a, b in pairs)
        True
    """
    made = copy.deepcopy(unwrap(model)).eval()
    found = analyze(made, example_inputs, example_kwargs=example_kwargs, modes="eval")
    for fold in found.symmetry.folds:
        _fold(made, fold)
    flags = [(parameter, parameter.requires_grad) for parameter in made.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)  # in a model that trains nothing everything moves
    plan = analyze(made, example_inputs, example_kwargs=example_kwargs, p=p, modes="eval")
    if plan.num_scales:
        plan.balance(tol=tol)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    return made


@torch.no_grad()
def _fold(model: nn.Module, fold: NormFold) -> None:
    """Folds one BatchNorm, where it and the layer are modules of torch's own classes; else both stay."""
    layer, norm = (model.get_submodule(name.rpartition(".")[0]) for name in (fold.weight, fold.mean))
    if not isinstance(layer, (nn.Linear, _ConvNd)) or type(norm).forward is not _BatchNorm.forward:
        return
    factor, shift = _affine(norm, fold.eps)
    layer.weight.copy_(layer.weight.double() * _by_channel(factor, tuple(layer.weight.shape), fold))
    bias = (0.0 if layer.bias is None else layer.bias.double()) * factor + shift
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.copy_(bias)
    owner, _, name = fold.mean.rpartition(".")[0].rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Identity())


def _affine(norm: Any, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (factor, shift), (channels,) float64: the norm in eval mode is y = factor x + shift."""
    factor = (norm.running_var.double() + eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.double()


def _by_channel(factor: Tensor, shape: tuple[int, ...], fold: NormFold) -> Tensor:
    """Returns the factor of every output channel, broadcastable to a weight of this shape."""
    if not fold.transposed:
        return factor.reshape(-1, *(1,) * (len(shape) - 1))
    # (inputs, outputs / groups, ...): the inputs of one group write that group's outputs.
    by_group = factor.reshape(fold.groups, shape[1]).repeat_interleave(shape[0] // fold.groups, 0)
    return by_group.reshape(*shape[:2], *(1,) * (len(shape) - 2))

"""Networks that compute derivatives forward: Jacobian-vector products, Jacobians, Hessians, dual numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .zoo_base import VECTOR, Net


def _layers() -> dict[str, nn.Module]:
    """Two pairs of layers, the second of which reads what the first gives."""
    return {"a": nn.Linear(4, 5), "b": nn.Linear(5, 2), "c": nn.Linear(2, 3), "d": nn.Linear(3, 1)}


def _first(m: Net, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x)))


def _second(m: Net, y: Tensor) -> Tensor:
    return m.d(F.relu(m.c(y)))


def _product(m: Net, x: Tensor) -> Tensor:
    y, tangent = torch.func.jvp(lambda v: _first(m, v), (x,), (torch.ones_like(x),))
    return _second(m, y) + _second(m, tangent)


def _smooth(m: Net, x: Tensor) -> Tensor:
    _, tangent = torch.func.jvp(lambda v: m.d(torch.tanh(_first(m, v)) @ m.c.weight.T), (x,), (x.square(),))
    return tangent


def _jacobian(m: Net, x: Tensor) -> Tensor:
    found = torch.func.vmap(torch.func.jacfwd(lambda row: _first(m, row)))(x)
    return _second(m, found.transpose(1, 2)).sum(1)


def _hessian(m: Net, x: Tensor) -> Tensor:
    def energy(row: Tensor) -> Tensor:
        return _first(m, row).square().sum()

    return _second(m, _first(m, x)) + torch.func.vmap(torch.func.hessian(energy))(x).sum((1, 2))[:, None]


def _gradient_of_a_product(m: Net, x: Tensor) -> Tensor:
    def loss(v: Tensor) -> Tensor:
        y, tangent = torch.func.jvp(lambda u: _first(m, u), (v,), (torch.ones_like(v),))
        return tangent.square().sum() + y.sum()

    return _second(m, _first(m, x)) + torch.func.grad(loss)(x).sum(1, keepdim=True)


def _dual_numbers(m: Net, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(_first(m, forward_ad.make_dual(x, torch.ones_like(x))))
        return _second(m, y) + _second(m, tangent)


def _case(forward: Callable[[Net, Tensor], Any]) -> tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]:
    return lambda: Net(forward, **_layers()), VECTOR


TANGENTS = {
    "tangent": _case(_product),
    "tangent_through_tanh": _case(_smooth),
    "jacobian_of_each_sample": _case(_jacobian),
    "hessian_of_each_sample": _case(_hessian),
    "gradient_of_a_tangent": _case(_gradient_of_a_product),
    "dual_numbers": _case(_dual_numbers),
}

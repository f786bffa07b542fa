"""Parameters to which the network adds a number before it multiplies: 1 + w, as in the norms of Gemma."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zoo_base import VECTOR, Case, Net

__all__ = ["OFFSETS", "gemma"]

Function = Callable[[Tensor], Tensor]


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)


def _gemma(m: Net, tokens: Tensor) -> Tensor:
    """An embedding times the root of its width, a gated layer and an attention behind norms of 1 + w, the embedding as head."""
    x = m.word((tokens * 10).long().abs() % 7) * 2.0
    y = _rms(x) * (1.0 + m.first)
    q, k, v = m.q(y), m.k(y), m.v(y)
    x = x + m.o((q @ k.transpose(1, 2)).softmax(-1) @ v)
    y = _rms(x) * (1.0 + m.second)
    x = x + m.down(F.gelu(m.gate(y)) * m.up(y))
    return F.linear(_rms(x) * (m.third + 1), m.word.weight)


def gemma() -> nn.Module:
    """A small Gemma."""
    layers = {name: nn.Linear(i, o, bias=False) for name, i, o in (("q", 4, 3), ("k", 4, 3), ("v", 4, 5), ("o", 5, 4))}
    layers |= {name: nn.Linear(i, o, bias=False) for name, i, o in (("gate", 4, 6), ("up", 4, 6), ("down", 6, 4))}
    norms = {name: nn.Parameter(torch.randn(4)) for name in ("first", "second", "third")}
    return Net(_gemma, word=nn.Embedding(7, 4), **layers, **norms)


def _norm(gain: Function) -> Callable[[], nn.Module]:
    """Linear(4, 5), a norm with a gain, Linear(5, 3)."""
    return lambda: Net(
        lambda m, x: m.b(_rms(m.a(x)) * gain(m.w)), a=nn.Linear(4, 5), w=nn.Parameter(torch.randn(5)), b=nn.Linear(5, 3)
    )


def _layer_norm() -> nn.Module:
    """NeMo's form, with a bias."""
    return Net(
        lambda m, x: m.b(F.layer_norm(m.a(x), (5,), m.w + 1, m.beta, 0.1)),
        a=nn.Linear(4, 5),
        w=nn.Parameter(torch.randn(5)),
        beta=nn.Parameter(torch.randn(5)),
        b=nn.Linear(5, 3),
    )


def _weight(function: Callable[[Net, Tensor], Tensor], *shape: int) -> Callable[[], nn.Module]:
    """Linear(4, 5), a function with a parameter of some shape, a layer of as many inputs."""
    return lambda: Net(function, a=nn.Linear(4, 5), w=nn.Parameter(torch.randn(*shape)), b=nn.Linear(shape[0], 3))


def _by_mode(m: Net, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x)) * (m.w + (1 if m.training else 2)))


ONE = {"w": 1.0}
OFFSETS: dict[str, Case] = {
    "gemma": Case(gemma, ((2, 5),), 3 + 5 + 4 + 4 + 6, {name: 1.0 for name in ("first", "second")}),
    "norm_of_1_plus_w": Case(_norm(lambda w: 1 + w), VECTOR, 5, ONE),
    "norm_of_1_minus_w": Case(_norm(lambda w: 1 - w), VECTOR, 5, {"w": -1.0}),
    "norm_of_half_plus_2_w": Case(_norm(lambda w: 2 * w + 0.5), VECTOR, 5, {"w": 0.25}),
    "norm_of_constants_in_turn": Case(_norm(lambda w: 1 - 2 * (w - 3) / 5), VECTOR, 5, {"w": -5.5}),
    "layer_norm_of_w_plus_1": Case(_layer_norm, VECTOR, 5, ONE),
    "norm_read_twice": Case(_norm(lambda w: (1 + w).abs().sqrt() * (1.0 + w[None]).sum(0)), VECTOR, 5, ONE),
    "norm_read_with_and_without": Case(_norm(lambda w: (1 + w) * w), VECTOR, 0),
    "norm_read_with_two_constants": Case(_norm(lambda w: (1 + w) * (2 + w)), VECTOR, 0),
    "norm_and_the_sign_of_w": Case(_norm(lambda w: (1 + w) * torch.sign(w)), VECTOR, 0),
    "norm_of_numbers_of_two_sizes": Case(_norm(lambda w: 1 + w * torch.tensor([1.0, 2, 1, 1, 1], dtype=w.dtype)), VECTOR, 0),
    "gain_of_1_plus_w": Case(_weight(lambda m, x: m.b(F.relu(m.a(x)) * (1 + m.w)), 5), VECTOR, 5 + 5, ONE),
    "gain_with_another_constant_later": Case(_weight(lambda m, x: m.b(F.relu(m.a(x) * (1 + m.w)) * (2 + m.w)), 5), VECTOR, 5),
    "gain_of_1_plus_w_in_one_mode": Case(_weight(_by_mode, 5), VECTOR, 5),
    "matrix_of_1_plus_w": Case(_weight(lambda m, x: m.b(F.relu(F.linear(m.a(x), 1 + m.w))), 6, 5), VECTOR, 5 + 6, ONE),
    "bias_of_1_plus_w": Case(_weight(lambda m, x: m.b(F.relu(m.a(x) + (1 + m.w))), 5), VECTOR, 5, ONE),
}  # fmt: skip

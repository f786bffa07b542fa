"""Networks whose channel ends are counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .zoo_base import Net

__all__ = ["BY_HAND", "Experts"]

EDGES = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 3, 0, 1]])


class Experts(nn.Module):
    """A mixture that sends tokens to experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.up = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(6, 5) for _ in range(3))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        pick = self.router(x).argmax(-1)
        out = x.new_zeros(x.shape[0], 5)
        for k in range(3):
            rows = torch.where(pick == k)[0]
            out = out.index_add(0, rows, self.down[k](torch.relu(self.up[k](x[rows]))))
        return self.head(torch.relu(out))


class ByMode(nn.Module):
    """Another activation in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(nn.functional.gelu(h) if self.training else torch.relu(h))


class BySize(nn.Module):
    """Channels and positions change places, which shows where there are several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        b, c, height, width = h.shape
        return self.b(h.flatten(2).mT.reshape(b, c, height, width))


def layers(*given: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*given)


def two(function: Callable[[Any, Tensor], Tensor], **more: nn.Module | nn.Parameter) -> Callable[[], nn.Module]:
    """Linear(4, 6) `a`, Linear(6, 3) `b`."""
    return lambda: Net(function, a=nn.Linear(4, 6), b=nn.Linear(6, 3), **more)


VECTOR = (torch.randn(5, 4),)
# name -> (network, inputs, options, {(kind, operator, graph): count}, free).
# Ends: of a linear layer its inputs and outputs, of a gain its entries.
BY_HAND: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], dict[str, Any], dict[tuple[str, str, str], int], int]] = {
    "chain": (
        layers(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("tied", "linear", ""): 6},
        6,
    ),
    "gelu": (
        layers(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("barrier", "gelu", ""): 12},
        0,
    ),
    "no rule": (
        two(lambda m, x: m.b(torch.special.bessel_j0(m.a(x)))),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("barrier", "special_bessel_j0", ""): 12},
        0,
    ),
    "norm": (
        layers(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("barrier", "layer_norm", ""): 6, ("tied", "linear", ""): 6},
        6,
    ),
    "norm left alone": (
        layers(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
        VECTOR,
        {"batchnorm": "skip"},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("option", "batch_norm", ""): 6, ("tied", "linear", ""): 6},
        6,
    ),
    "excluded": (
        layers(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
        VECTOR,
        {"exclude": "0"},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("option", "exclude", ""): 12},
        0,
    ),
    "excluded without biases": (
        layers(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)),
        VECTOR,
        {"exclude": "2"},
        # One scale passes through the excluded layer: 6 + 6 + 5 + 5 ends carry it.
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("tied", "linear", ""): 11, ("tied", "exclude", ""): 10},
        1,
    ),
    "shortcut from the input": (
        lambda: Net(lambda m, x: m.b(torch.relu(m.a(x)) + x), a=nn.Linear(4, 4), b=nn.Linear(4, 3)),
        VECTOR,
        {},
        {("input", "input", ""): 12, ("output", "output", ""): 3},
        0,
    ),
    "a gain that is one number": (
        two(lambda m, x: m.b(torch.relu(m.a(x)) * m.s), s=nn.Parameter(torch.randn(()))),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("tied", "linear", ""): 6},
        7,
    ),
    "a gain with two constants": (
        two(lambda m, x: m.b(torch.relu(m.a(x) * (1 + m.w)) * (2 + m.w)), w=nn.Parameter(torch.randn(6))),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("barrier", "mul", ""): 6, ("tied", "linear", ""): 6},
        6,
    ),
    "a weight taken apart": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3)),
        VECTOR,
        {},
        # A row of the direction moves as a whole: its inputs carry what its first output does.
        {("output", "output", ""): 3, ("tied", "_weight_norm", ""): 4, ("tied", "linear", ""): 6},
        12,
    ),
    "a scale that cancels in a weight": (
        lambda: Net(
            lambda m, x: m.b(x) + m.c(h := x.new_zeros(len(x), 6) + m.p) / h,
            b=nn.Linear(4, 6),
            c=nn.Linear(6, 6, bias=False),
            p=nn.Parameter(torch.rand(6) + 1),
        ),
        VECTOR,
        {},
        {
            ("input", "input", ""): 4,
            ("output", "output", ""): 6,
            ("tied", "output", ""): 6,
            ("tied", "in and out together", ""): 1,
        },
        5,
    ),
    "the input added in train mode": (
        lambda: Net(lambda m, x: m.b((m.a(x).relu() + x) if m.training else m.a(x).relu()), a=nn.Linear(4, 4), b=nn.Linear(4, 3)),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("input", "input", "in train mode"): 8},
        0,
    ),
    "read by Python": (
        two(lambda m, x: (m.b(torch.relu(h := m.a(x))), h.square().mean().item())),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("barrier", "item", ""): 12},
        0,
    ),
    "sum over channels": (
        two(lambda m, x: m.c(torch.relu(m.a(x)).sum(1, keepdim=True).expand(-1, 6)) + m.b(torch.relu(m.a(x))), c=nn.Linear(6, 3)),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 6, ("tied", "sum", ""): 5, ("tied", "linear", ""): 12},
        1,
    ),
    "clamped between two buffers": (
        two(lambda m, x: m.b(torch.clamp(m.a(x), m.limits.running_mean, m.limits.running_var)), limits=nn.BatchNorm1d(6)),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("input", "buffer", ""): 12, ("output", "output", ""): 3},
        0,
    ),
    "some channels clamped between two buffers": (
        two(
            lambda m, x: m.b(torch.cat([torch.clamp(m.a(x)[:, :2], m.n.running_mean, m.n.running_var), m.a(x)[:, 2:].relu()], 1)),
            n=nn.BatchNorm1d(2),
        ),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("input", "buffer", ""): 4, ("output", "output", ""): 3, ("tied", "linear", ""): 4},
        4,
    ),
    "side by side": (
        lambda: Net(
            lambda m, x: m.c(torch.relu(torch.cat([x, nn.functional.gelu(m.a(x)), m.b(x)], 1)).flip(1)),
            a=nn.Linear(4, 6),
            b=nn.Linear(4, 5),
            c=nn.Linear(15, 2),
        ),
        VECTOR,
        {},
        {("input", "input", ""): 12, ("output", "output", ""): 2, ("barrier", "gelu", ""): 12, ("tied", "linear", ""): 5},
        5,
    ),
    "fused LSTM": (
        lambda: nn.LSTM(4, 6),
        (torch.randn(5, 2, 4),),
        {},
        {("input", "input", ""): 10, ("barrier", "lstm", ""): 48},
        0,
    ),
    "fused RNN": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.RNN(5, 6, nonlinearity="relu")),
        (torch.randn(5, 2, 4),),
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 18, ("tied", "rnn_relu", ""): 5},
        5,
    ),
    "graph layer": (
        two(lambda m, x: m.b(torch.zeros(5, 6).index_add(0, EDGES[1], torch.relu(m.a(x))[EDGES[0]]))),
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("tied", "linear", ""): 6},
        6,
    ),
    "mode": (
        ByMode,
        VECTOR,
        {},
        {("input", "input", ""): 4, ("output", "output", ""): 3, ("barrier", "gelu", "in train mode"): 12},
        0,
    ),
    "size": (
        BySize,
        (torch.randn(2, 3, 1, 1),),
        {},
        {("input", "input", ""): 3, ("output", "output", ""): 2, ("tied", "conv2d", ""): 8, ("tied", "", "at another size"): 7},
        1,
    ),
}

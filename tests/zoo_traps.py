"""What tools that pair layers by name or by shape get wrong silently, and activations without a law."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .zoo_base import IMAGE, TOKENS, VECTOR, Case, Net, pair


def double_first_half(h: torch.Tensor) -> torch.Tensor:
    """Writes into a view of an activation, what the activation's later readers see."""
    h[:, :3].mul_(2.0)
    return h


def one_through_a_view(h: torch.Tensor) -> torch.Tensor:
    """Writes a constant through a view."""
    h[:, 1:3].fill_(1.0)
    return h


TRAPS: dict[str, Case] = {
    "shared_in_chain": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.s(F.relu(m.s(F.relu(m.a(x))))))),
            a=nn.Linear(4, 6),
            s=nn.Linear(6, 6, bias=False),
            b=nn.Linear(6, 3),
        ),
        VECTOR,
        6 + 1,  # s may also grow as a whole: a gets +t, b gets -t
    ),
    "shared_in_chain_with_bias": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.s(F.relu(m.s(F.relu(m.a(x))))))), a=nn.Linear(4, 6), s=nn.Linear(6, 6), b=nn.Linear(6, 3)
        ),
        VECTOR,
        6,
    ),
    "shared_in_branches": Case(
        lambda: Net(
            lambda m, x: m.b(torch.cat([F.relu(m.a(x)), F.relu(m.a(F.max_pool2d(x, 3, 1, 1)))], 1)),
            a=nn.Conv2d(3, 5, 3),
            b=nn.Conv2d(10, 2, 1),
        ),
        IMAGE,
        5,
    ),
    "tied_transposed": Case(
        lambda: Net(lambda m, x: F.linear(F.relu(F.linear(x, m.w)), m.w.t()), w=nn.Parameter(torch.randn(5, 4))), VECTOR, 0
    ),
    "tied_transposed_with_middle": Case(
        lambda: Net(
            lambda m, x: F.linear(F.relu(m.a(F.relu(F.linear(x, m.w)))), m.w.t()),
            w=nn.Parameter(torch.randn(5, 4)),
            a=nn.Linear(5, 5),
        ),
        VECTOR,
        5,  # a's outputs get the inverse of its inputs
    ),
    "constant_added": Case(pair(lambda h: torch.relu(h) + 1), VECTOR, 0),
    "constant_added_in_place": Case(pair(lambda h: torch.relu(h).add_(0.5)), VECTOR, 0),
    "constant_zero_added": Case(pair(lambda h: torch.relu(h) + 0), VECTOR, 6),
    "greater_than_minus_infinity": Case(
        pair(lambda h: torch.maximum(h, torch.tensor([-torch.inf] * 6, dtype=h.dtype))), VECTOR, 6
    ),
    "greater_than_a_bound_in_two_channels": Case(
        pair(lambda h: torch.maximum(h, torch.tensor([-torch.inf, 0.5, -torch.inf, -torch.inf, -0.5, 0.0], dtype=h.dtype))),
        VECTOR,
        4,
    ),
    "mean_over_channels": Case(
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x)).mean(1, keepdim=True)), a=nn.Linear(4, 6), b=nn.Linear(1, 3)), VECTOR, 1
    ),
    "max_over_channels": Case(pair(lambda h: F.max_pool1d(F.relu(h), 2), 3), TOKENS, 3),  # window by window
    "permuted": Case(pair(lambda h: F.relu(h)[:, [3, 0, 5, 1, 4, 2]]), VECTOR, 6),
    "flipped": Case(pair(lambda h: F.relu(h).flip(1)), VECTOR, 6),
    "rolled": Case(pair(lambda h: F.relu(h).roll(2, 1)), VECTOR, 6),
    "gathered_twice": Case(pair(lambda h: F.relu(h)[:, [0, 0, 1, 1, 2, 3, 4, 5]], 8), VECTOR, 6),
    "written_through_a_view": Case(pair(double_first_half), VECTOR, None),
    "written_constant_through_a_view": Case(pair(one_through_a_view), VECTOR, None),
    "feature_returned": Case(
        lambda: Net(lambda m, x: (h := F.relu(m.a(x)), m.b(h)), a=nn.Linear(4, 5), b=nn.Linear(5, 3)), VECTOR, 0
    ),
    "weight_returned": Case(
        lambda: Net(lambda m, x: (m.b(F.relu(m.a(x))), m.a.weight), a=nn.Linear(4, 5), b=nn.Linear(5, 3)), VECTOR, 0
    ),
    "bias_read_elsewhere": Case(
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x))) + m.a.bias, a=nn.Linear(4, 5), b=nn.Linear(5, 5)), VECTOR, 0
    ),
    "norm_called_twice": Case(
        lambda: Net(lambda m, x: m.b(F.relu(m.n(m.a(F.relu(m.n(x)))))), a=nn.Linear(5, 5), n=nn.LayerNorm(5), b=nn.Linear(5, 3)),
        ((7, 5),),
        5,  # one gamma, so a's inputs and b's inputs move together
    ),
    "linear_along_positions": Case(
        lambda: Net(
            lambda m, x: m.c(m.b(F.relu(m.a(x)).transpose(1, 2)).transpose(1, 2)),
            a=nn.Linear(4, 6),
            b=nn.Linear(6, 6),
            c=nn.Linear(6, 3),
        ),
        ((2, 6, 4),),
        1 + 1,  # as many positions as channels: b mixes positions, its bias ties the channels, c's bias ties b's outputs
    ),
    "softmax_over_channels": Case(pair(lambda h: h.softmax(1)), VECTOR, 0),
    "swish_by_hand": Case(pair(lambda h: h * torch.sigmoid(h)), VECTOR, 0),
    "product_plus_term": Case(
        lambda: Net(
            lambda m, x: m.d(m.a(x) * m.b(x) + m.c(x)), a=nn.Linear(4, 5), b=nn.Linear(4, 5), c=nn.Linear(4, 5), d=nn.Linear(5, 2)
        ),
        VECTOR,
        5 + 5,  # c follows a + b
    ),
    "square_plus_itself": Case(pair(lambda h: h * h + h), VECTOR, 0),
    "compared_with_zero": Case(pair(lambda h: torch.where(h > 0, h, 0.1 * h)), VECTOR, 6),
    "compared_with_one": Case(pair(lambda h: torch.where(h > 1, h, 0.1 * h)), VECTOR, 0),
    "divided_by_its_norm": Case(pair(lambda h: h / h.norm(dim=1, keepdim=True)), VECTOR, 1),
}

BARRIERS: dict[str, tuple[nn.Module, str]] = {
    "gelu": (nn.GELU(), "gelu"),
    "silu": (nn.SiLU(), "silu"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
    "tanh": (nn.Tanh(), "tanh"),
    "relu6": (nn.ReLU6(), "hardtanh"),
    "hardswish": (nn.Hardswish(), "hardswish"),
    "hardsigmoid": (nn.Hardsigmoid(), "hardsigmoid"),
    "elu": (nn.ELU(), "elu"),
    "softplus": (nn.Softplus(), "softplus"),
    "softmax": (nn.Softmax(1), "softmax"),
    "threshold": (nn.Threshold(0.1, 0.0), "threshold"),
}
"""Activations that obey no law, and a part of the name of their operator."""

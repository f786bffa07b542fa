"""Chains: every layer reads the layer in front of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .zoo_base import IMAGE, TOKENS, VECTOR, Case, Net, between, pair, seq

PLAIN: dict[str, Case] = {
    "mlp": Case(lambda: seq(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), VECTOR, 5 + 7),
    "mlp_without_bias": Case(
        lambda: seq(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)),
        VECTOR,
        5 + 7,
    ),
    "mlp_without_activation": Case(lambda: seq(nn.Linear(4, 5), nn.Linear(5, 3)), VECTOR, 5),
    "nested": Case(
        lambda: seq(
            seq(nn.Linear(4, 5), seq(nn.ReLU(), nn.Dropout(0.2))), seq(seq(seq(nn.Linear(5, 7))), nn.ReLU(), nn.Linear(7, 3))
        ),
        VECTOR,
        5 + 7,
    ),
    "functional": Case(
        lambda: Net(
            lambda m, x: F.linear(torch.relu_(F.linear(x, m.w, m.b)), m.v),
            w=nn.Parameter(torch.randn(5, 4)),
            b=nn.Parameter(torch.randn(5)),
            v=nn.Parameter(torch.randn(3, 5)),
        ),
        VECTOR,
        5,
    ),
    "conv1d": Case(
        lambda: seq(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Conv1d(5, 7, 2, stride=2), nn.ReLU(), nn.Conv1d(7, 2, 1)),
        ((2, 3, 17),),
        5 + 7,
    ),
    "conv2d": Case(
        lambda: seq(
            nn.Conv2d(3, 5, (3, 2)), nn.ReLU(True), nn.Conv2d(5, 7, 3, 2, padding=1, dilation=2), nn.ReLU(), nn.Conv2d(7, 2, 1)
        ),
        IMAGE,
        5 + 7,
    ),
    "conv3d": Case(lambda: seq(nn.Conv3d(3, 5, (1, 2, 3)), nn.ReLU(), nn.Conv3d(5, 2, 2)), ((2, 3, 4, 5, 6),), 5),
    "conv_padded": Case(lambda: seq(nn.Conv2d(3, 5, 3, padding="same"), nn.ReLU(), nn.Conv2d(5, 2, 3, padding=1)), IMAGE, 5),
    "conv_reflect": Case(
        lambda: seq(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3, padding=1, padding_mode="reflect")), IMAGE, 5
    ),
    "conv_transpose1d": Case(
        lambda: seq(nn.ConvTranspose1d(3, 5, 3, stride=2), nn.ReLU(), nn.ConvTranspose1d(5, 2, 2)), ((2, 3, 7),), 5
    ),
    "conv_transpose2d": Case(
        lambda: seq(
            nn.ConvTranspose2d(3, 6, 3, 2, output_padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 7, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(7, 2, 2),
        ),
        ((2, 3, 5, 6),),
        6 + 7,
    ),
    "conv_transpose3d": Case(
        lambda: seq(nn.ConvTranspose3d(3, 5, 2), nn.ReLU(), nn.ConvTranspose3d(5, 2, 2)), ((2, 3, 4, 5, 6),), 5
    ),
    "conv_transpose_grouped": Case(
        lambda: seq(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        IMAGE,
        6 + 8,
    ),
    "conv_grouped": Case(
        lambda: seq(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 9, 3, groups=3), nn.ReLU(), nn.Conv2d(9, 2, 1)), IMAGE, 6 + 9
    ),
    "conv_grouped_1d": Case(
        lambda: seq(nn.Conv1d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv1d(6, 9, 3, groups=3), nn.ReLU(), nn.Conv1d(9, 2, 1)),
        ((2, 4, 9),),
        6 + 9,
    ),
    "depthwise": Case(
        lambda: seq(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1)), IMAGE, 6 + 6
    ),
    "depthwise_multiplier": Case(
        lambda: seq(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)), IMAGE, 4 + 8
    ),
    "flatten": Case(
        lambda: seq(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 4 * 5, 7), nn.ReLU(), nn.Linear(7, 2)
        ),
        IMAGE,
        5 + 7,
    ),
    "view_then_linear": Case(
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x)).view(x.shape[0], -1)), a=nn.Conv1d(3, 5, 2), b=nn.Linear(5 * 6, 2)),
        ((2, 3, 7),),
        5,
    ),
    "global_pool": Case(
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x)).mean((2, 3))), a=nn.Conv2d(3, 5, 3), b=nn.Linear(5, 2)), IMAGE, 5
    ),
    "unflatten": Case(
        lambda: seq(
            nn.Linear(4, 6),
            nn.ReLU(),
            nn.Linear(6, 3 * 3 * 5),
            nn.ReLU(),
            nn.Unflatten(1, (3, 3, 5)),
            nn.Conv2d(3, 7, 2),
            nn.ReLU(),
            nn.Conv2d(7, 2, 1),
        ),
        VECTOR,
        6 + 3 + 7,  # the fifteen positions of a channel are tied by the convolution that reads them
    ),
    "max_pool": Case(between(nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)), IMAGE, 6),
    "avg_pool": Case(between(nn.AvgPool2d(2), nn.ReLU()), IMAGE, 6),
    "adaptive_pools": Case(between(nn.AdaptiveAvgPool2d((5, 4)), nn.AdaptiveMaxPool2d((3, 2))), IMAGE, 6),
    "leaky_relu": Case(between(nn.LeakyReLU(0.1)), IMAGE, 6),
    "prelu": Case(between(nn.PReLU()), IMAGE, 6),
    "prelu_per_channel": Case(between(nn.PReLU(6)), IMAGE, 6),
    "dropout": Case(between(nn.Dropout(0.3), nn.ReLU(), nn.Dropout2d(0.1)), IMAGE, 6),
    "abs": Case(pair(torch.abs), VECTOR, 6),
    "clamp_min": Case(pair(lambda h: h.clamp(min=0)), VECTOR, 6),
    "square": Case(pair(lambda h: h * h), VECTOR, 6),
    "square_of_a_root": Case(pair(lambda h: torch.relu(h).sqrt().square()), VECTOR, 6),
    "scaled": Case(pair(lambda h: 0.5 * torch.relu(h) / 3), VECTOR, 6),
    "batch_norm": Case(between(nn.BatchNorm2d(6), nn.ReLU()), IMAGE, 6),
    "batch_norm_1d": Case(lambda: seq(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), VECTOR, 5),
    "batch_norm_3d": Case(
        lambda: seq(nn.Conv3d(3, 5, 2), nn.BatchNorm3d(5), nn.ReLU(), nn.Conv3d(5, 2, 1)), ((2, 3, 4, 5, 6),), 5
    ),
    "batch_norm_without_affine": Case(between(nn.BatchNorm2d(6, affine=False), nn.ReLU()), IMAGE, 0),
    "batch_norm_without_statistics": Case(between(nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()), IMAGE, 6),
    "layer_norm": Case(lambda: seq(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)), VECTOR, 6),
    "layer_norm_two_axes": Case(lambda: seq(nn.LayerNorm((5, 4)), nn.Flatten(), nn.Linear(20, 3)), TOKENS, 5 * 4),
    "group_norm": Case(between(nn.GroupNorm(3, 6), nn.ReLU()), IMAGE, 6),
    "embedding": Case(
        lambda: seq(nn.Embedding(11, 6), nn.ReLU(), nn.Linear(6, 3)), lambda: (torch.tensor([[0, 3, 10], [7, 1, 3]]),), 6
    ),
}

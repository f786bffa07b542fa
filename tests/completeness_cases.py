"""Small networks in which something is shared, derived, gated, moved or read twice; what the zoo has not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from . import completeness_operators
from .completeness_experts import EXPERTS
from .completeness_graphs import GRAPHS
from .completeness_indexing import INDEXED
from .completeness_tangents import TANGENTS
from .zoo_base import TOKENS, VECTOR, Net, Residual, seq

__all__ = ["NETWORKS", "Network"]

Network = tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]
"""Makes the network; the shapes of its inputs."""

P = nn.Parameter
IMAGE = ((2, 3, 5, 6),)


def _w(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def _recurrent(m: Net, x: Tensor) -> Tensor:
    """A ReLU cell, unrolled over five steps."""
    h = torch.zeros(x.shape[0], 5, dtype=x.dtype)
    for t in range(x.shape[1]):
        h = F.relu(m.into(x[:, t]) + m.loop(h))
    return m.out(h)


def _standardised(m: Net, x: Tensor) -> Tensor:
    """A convolution whose weight is standardised in the graph, with a gain."""
    mean = m.w.mean((1, 2, 3), keepdim=True)
    deviation = m.w.var((1, 2, 3), keepdim=True, unbiased=False)
    return m.out(F.relu(F.conv2d(x, m.gain * (m.w - mean) * torch.rsqrt(deviation + 0.1), m.b)))


def _attention(m: Net, x: Tensor) -> Tensor:
    """Two heads of three, by hand."""
    q, k, v = (layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(3)).softmax(-1)
    return m.o((scores @ v).transpose(1, 2).flatten(2))


def _rotated(x: Tensor) -> Tensor:
    """Rotary positions, halves paired."""
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.3], dtype=x.dtype)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _rotary(m: Net, x: Tensor) -> Tensor:
    """Rotary queries and keys, four query heads on two key heads, causal."""
    q = _rotated(m.q(x).unflatten(-1, (4, 4)).transpose(1, 2))
    k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (m.k, m.v))
    out = F.scaled_dot_product_attention(q, _rotated(k), v, is_causal=True, enable_gqa=True)
    return m.o(out.transpose(1, 2).flatten(2))


def _complex_rotary(m: Net, x: Tensor) -> Tensor:
    """Rotary positions by complex numbers, neighbours paired."""
    turn = torch.polar(torch.ones(5, 2, dtype=x.dtype), torch.arange(10.0, dtype=x.dtype).view(5, 2))
    q, k = (torch.view_as_real(torch.view_as_complex(layer(x).view(-1, 5, 2, 2)) * turn).flatten(2) for layer in (m.q, m.k))
    return m.o((q @ k.transpose(1, 2)).softmax(-1) @ m.v(x))


def _normed_queries(m: Net, x: Tensor) -> Tensor:
    """Queries and keys through RMS norms of their own."""
    q, k = m.nq(m.q(x)), m.nk(m.k(x))
    return m.o((q @ k.transpose(1, 2)).softmax(-1) @ m.v(x))


def _experts(m: Net, x: Tensor) -> Tensor:
    """A dense mixture of experts with stacked weights."""
    gate = m.router(x).softmax(-1)
    hidden = F.relu(torch.einsum("nd,edh->neh", x, m.up))
    return torch.einsum("neh,ehd,ne->nd", hidden, m.down, gate)


def _rms(m: Net, x: Tensor) -> Tensor:
    """An RMS norm written by hand."""
    h = m.a(x)
    return m.b(m.gain * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 0.1))


def _shortcut(m: Net, x: Tensor) -> Tensor:
    """A residual block with twice the channels and half the size, its shortcut padded by zeros."""
    h = F.relu(m.stem(x))
    return m.head(F.relu(F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)) + m.block(h)))


def _two(function: Callable[[Tensor, Tensor], Tensor], width: int = 6) -> Callable[[], nn.Module]:
    """Two layers, a function of both results, a layer."""
    return lambda: Net(lambda m, x: m.c(function(m.a(x), m.b(x))), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(width, 3))


def _one(function: Callable[[Tensor], Tensor], width: int = 6) -> Callable[[], nn.Module]:
    """A layer, a function of its result, a layer."""
    return lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(width, 3))


def _tokens(function: Callable[[Tensor], Tensor], width: int = 6) -> Callable[[], nn.Module]:
    """The same on sequences of five."""
    return _one(function, width)


def _tied() -> nn.Module:
    """An embedding that is the last layer too."""
    net = Net(lambda m, x: m.out(m.norm(m.up(F.relu(m.down(m.word(x)))))), word=nn.Embedding(7, 4), down=nn.Linear(4, 5))
    net.up, net.norm, net.out = nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
    net.out.weight = net.word.weight
    inner = net.function
    net.function = lambda m, x: inner(m, (x * 10).long().abs() % 7)
    return net


SHARED: dict[str, Network] = {
    "chain_of_three_with_biases": (
        lambda: Net(lambda m, x: m.c(m.b(m.b(m.b(m.a(x))))), a=nn.Linear(4, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 2)),
        VECTOR,
    ),
    "shared_behind_two_layers": (
        lambda: Net(
            lambda m, x: m.d(F.relu(m.c(m.a(x)))) + m.e(F.relu(m.c(m.b(x)))),
            **{k: nn.Linear(i, o) for k, i, o in (("a", 4, 5), ("b", 4, 5), ("c", 5, 6), ("d", 6, 2), ("e", 6, 2))},
        ),
        VECTOR,
    ),
    "norm_in_two_branches": (
        lambda: Net(
            lambda m, x: m.b(m.n(m.a(x))) + m.c(m.n(x)),
            n=nn.LayerNorm(4),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 2),
            c=nn.Linear(4, 2),
        ),
        VECTOR,
    ),
    "batch_norm_twice_in_a_chain": (
        lambda: Net(
            lambda m, x: m.c(F.relu(m.n(m.b(F.relu(m.n(m.a(x))))))),
            n=nn.BatchNorm1d(5),
            a=nn.Linear(4, 5),
            b=nn.Linear(5, 5),
            c=nn.Linear(5, 2),
        ),
        VECTOR,
    ),
    "recurrent": (lambda: Net(_recurrent, into=nn.Linear(4, 5), loop=nn.Linear(5, 5), out=nn.Linear(5, 2)), TOKENS),
    "tied_embedding": (_tied, VECTOR),
    "weight_read_elsewhere": (
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x))) + m.a.weight.mean(), a=nn.Linear(4, 5), b=nn.Linear(5, 2)),
        VECTOR,
    ),
    "weight_read_transposed": (
        lambda: Net(lambda m, x: F.linear(F.relu(m.b(F.relu(m.a(x)))), m.a.weight.t()), a=nn.Linear(4, 5), b=nn.Linear(5, 5)),
        VECTOR,
    ),
    "bias_returned": (
        lambda: Net(lambda m, x: (m.b(F.relu(m.a(x))), m.a.bias[1:3]), a=nn.Linear(4, 5), b=nn.Linear(5, 2)),
        VECTOR,
    ),
    "feature_pooled_and_returned": (
        lambda: Net(lambda m, x: (m.b(h := F.relu(m.a(x))), h.mean(1)), a=nn.Linear(4, 5), b=nn.Linear(5, 2)),
        VECTOR,
    ),
    "part_of_a_feature_returned": (
        lambda: Net(lambda m, x: (m.b(h := F.relu(m.a(x))), h[:, 1:3]), a=nn.Linear(4, 5), b=nn.Linear(5, 2)),
        VECTOR,
    ),
}

DERIVED: dict[str, Network] = {
    "low_rank_update": (
        lambda: Net(
            lambda m, x: m.out(F.relu(F.linear(x, m.w + m.up @ m.down))),
            w=_w(6, 4),
            up=_w(6, 2),
            down=_w(2, 4),
            out=nn.Linear(6, 3),
        ),
        VECTOR,
    ),
    "low_rank_update_in_the_middle": (
        lambda: Net(
            lambda m, x: m.c(F.relu(F.linear(F.relu(m.a(x)), m.w + 0.5 * (m.up @ m.down)))),
            a=nn.Linear(4, 5),
            w=_w(6, 5),
            up=_w(6, 2),
            down=_w(2, 5),
            c=nn.Linear(6, 3),
        ),
        VECTOR,
    ),
    "low_rank_branch": (
        lambda: Net(
            lambda m, x: m.c(F.relu(m.a(x) + m.up(m.down(x)))),
            a=nn.Linear(4, 6),
            down=nn.Linear(4, 2, bias=False),
            up=nn.Linear(2, 6, bias=False),
            c=nn.Linear(6, 3),
        ),
        VECTOR,
    ),
    "standardised_weight": (
        lambda: Net(_standardised, w=_w(5, 3, 2, 2), gain=_w(5, 1, 1, 1), b=_w(5), out=nn.Conv2d(5, 2, 1)),
        IMAGE,
    ),
    "weight_norm": (lambda: seq(parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 2)), VECTOR),
    "masked_weight": (
        lambda: Net(
            lambda m, x: m.b(F.relu(F.linear(x, m.w * torch.ones(6, 4, dtype=x.dtype).tril()))), w=_w(6, 4), b=nn.Linear(6, 3)
        ),
        VECTOR,
    ),
    "concatenated_weights": (
        lambda: Net(lambda m, x: m.b(F.relu(F.linear(x, torch.cat([m.v, m.w])))), v=_w(2, 4), w=_w(4, 4), b=nn.Linear(6, 3)),
        VECTOR,
    ),
    "positions_added": (
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x) + m.position)), a=nn.Linear(4, 6), position=_w(5, 6), b=nn.Linear(6, 3)),
        TOKENS,
    ),
    "class_token": (
        lambda: Net(
            lambda m, x: m.b(F.relu(torch.cat([m.token.expand(2, -1, -1), m.a(x)], 1))[:, 0]),
            a=nn.Linear(4, 6),
            token=_w(1, 1, 6),
            b=nn.Linear(6, 3),
        ),
        TOKENS,
    ),
    "layer_scale": (
        lambda: Net(
            lambda m, x: m.c(F.relu(m.a(x) + m.scale * m.b(F.relu(m.a(x))))),
            a=nn.Linear(4, 6),
            b=nn.Linear(6, 6),
            scale=_w(6),
            c=nn.Linear(6, 3),
        ),
        VECTOR,
    ),
    "squeezed_gain": (
        lambda: Net(lambda m, x: m.b(m.gain * F.relu(m.a(x))), a=nn.Linear(4, 6), gain=_w(1), b=nn.Linear(6, 3)),
        VECTOR,
    ),
}

GATED: dict[str, Network] = {
    "swiglu": (_two(lambda a, b: F.silu(a) * b), VECTOR),
    "reglu": (_two(lambda a, b: F.relu(a) * b), VECTOR),
    "bilinear_gate": (_two(torch.mul), VECTOR),
    "gated_by_a_scalar": (
        lambda: Net(lambda m, x: m.c(m.b(x).relu() * m.a(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 1), c=nn.Linear(6, 3)),
        VECTOR,
    ),
    "highway": (_two(lambda a, b: a * b.sigmoid() + F.relu(a) * (1 - b.sigmoid())), VECTOR),
    "quotient": (_two(lambda a, b: a / (b * b)), VECTOR),
    "squared_relu": (_one(lambda h: F.relu(h) ** 2), VECTOR),
    "cubed": (_one(lambda h: h * h * h), VECTOR),
    "geometric_mean": (_two(lambda a, b: (a.abs() * b.abs()).sqrt()), VECTOR),
    "square_of_one_and_cube_of_other": (_two(lambda a, b: a**2 + b**3), VECTOR),
    "product_plus_third": (
        lambda: Net(
            lambda m, x: m.d(m.a(x) * m.b(x) + m.c(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(4, 6), d=nn.Linear(6, 3)
        ),
        VECTOR,
    ),
    "product_plus_first": (_two(lambda a, b: a * b + a), VECTOR),
    "attention_by_hand": (
        lambda: Net(_attention, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), o=nn.Linear(6, 3)),
        TOKENS,
    ),
    "rotary_grouped_queries": (
        lambda: Net(
            _rotary, q=nn.Linear(4, 16, bias=False), k=nn.Linear(4, 8, bias=False), v=nn.Linear(4, 8), o=nn.Linear(16, 2)
        ),
        TOKENS,
    ),
    "rotary_by_complex_numbers": (
        lambda: Net(_complex_rotary, q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 3), o=nn.Linear(3, 2)),
        TOKENS,
    ),
    "normed_queries_and_keys": (
        lambda: Net(
            _normed_queries,
            q=nn.Linear(4, 3),
            k=nn.Linear(4, 3),
            v=nn.Linear(4, 5),
            o=nn.Linear(5, 2),
            nq=nn.RMSNorm(3),
            nk=nn.RMSNorm(3),
        ),
        TOKENS,
    ),
    "mixture_of_experts": (lambda: Net(_experts, router=nn.Linear(4, 3), up=_w(3, 4, 5), down=_w(3, 5, 4)), VECTOR),
    "rms_norm_by_hand": (lambda: Net(_rms, a=nn.Linear(4, 6), gain=_w(6), b=nn.Linear(6, 3)), VECTOR),
    "bilinear": (
        lambda: Net(
            lambda m, x: m.d(m.c(m.a(x), m.b(x))), a=nn.Linear(4, 3), b=nn.Linear(4, 2), c=nn.Bilinear(3, 2, 5), d=nn.Linear(5, 2)
        ),
        VECTOR,
    ),
    "max_out": (_two(torch.maximum), VECTOR),
}

MOVED: dict[str, Network] = {
    "added_in_place": (_one(lambda h: (h * 1.0).add_(0.5)), VECTOR),
    "doubled_in_place_through_a_view": (_one(lambda h: _written(h * 1.0)), VECTOR),
    "sliced_apart": (
        lambda: Net(
            lambda m, x: m.b((h := m.a(x))[:, :2]) + m.c(h[:, 2:].abs()), a=nn.Linear(4, 6), b=nn.Linear(2, 3), c=nn.Linear(4, 3)
        ),
        VECTOR,
    ),
    "every_second_channel_twice": (_one(lambda h: torch.cat([h[:, ::2], h[:, ::2].abs()], 1)), VECTOR),
    "gathered": (_one(lambda h: h[:, torch.tensor([5, 0, 0, 3])], 4), VECTOR),
    "square_transposed": (
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x)).transpose(1, 2)), a=nn.Linear(4, 5), b=nn.Linear(5, 3)),
        TOKENS,
    ),
    "square_not_transposed": (_tokens(lambda h: F.relu(h)), TOKENS),
    "reshaped_to_the_same_size": (
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x)).reshape(2, 6, 5).transpose(1, 2)), a=nn.Linear(4, 6), b=nn.Linear(6, 3)),
        TOKENS,
    ),
    "pooled_over_channels_by_mistake": (_tokens(lambda h: F.max_pool1d(h, 2, 1), 5), TOKENS),
    "pooled_side_by_side_over_channels": (_tokens(lambda h: F.avg_pool1d(h, 2), 3), TOKENS),
    "pooled_over_positions": (_tokens(lambda h: F.avg_pool1d(h.transpose(1, 2), 2).transpose(1, 2)), TOKENS),
    "stacked": (_two(lambda a, b: torch.stack([a, b], -1).flatten(1), 12), VECTOR),
    "stacked_and_summed": (_two(lambda a, b: torch.stack([a, b]).sum(0)), VECTOR),
    "running_sum": (_tokens(lambda h: h.cumsum(1)), TOKENS),
    "running_sum_over_channels": (_one(lambda h: h.cumsum(1)), VECTOR),
    "padded_shortcut": (
        lambda: Net(_shortcut, stem=nn.Conv2d(3, 3, 1), block=nn.Conv2d(3, 6, 3, stride=2, padding=1), head=nn.Conv2d(6, 2, 1)),
        IMAGE,
    ),
    "padded_channels": (_one(lambda h: F.pad(h, (1, 2)), 9), VECTOR),
    "padded_by_one": (_one(lambda h: F.pad(h, (1, 2), value=1.0), 9), VECTOR),
    "windows": (
        lambda: Net(lambda m, x: m.b(F.unfold(F.relu(m.a(x)), 2).transpose(1, 2)), a=nn.Conv2d(3, 4, 1), b=nn.Linear(16, 2)),
        IMAGE,
    ),
    "interpolated": (
        lambda: Net(
            lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="bilinear")), a=nn.Conv2d(3, 4, 2), b=nn.Conv2d(4, 2, 2)
        ),
        IMAGE,
    ),
    "pixel_shuffle": (
        lambda: Net(lambda m, x: m.b(F.pixel_shuffle(F.relu(m.a(x)), 2)), a=nn.Conv2d(3, 8, 2), b=nn.Conv2d(2, 3, 2)),
        IMAGE,
    ),
    "masked_channels": (_one(lambda h: h * torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=h.dtype)), VECTOR),
    "masked_by_sign_of_another": (_two(lambda a, b: a * (b > 0)), VECTOR),
    "where_of_two": (_two(lambda a, b: torch.where(a > 0, a, b)), VECTOR),
    "compared_with_one": (_one(lambda h: torch.where(h > 1, h, 0.1 * h)), VECTOR),
    "sorted": (_one(lambda h: h.sort(1)[0]), VECTOR),
    "einsum_across": (
        lambda: Net(
            lambda m, x: m.b(torch.einsum("nld,lk->nkd", F.relu(m.a(x)), m.mix)),
            a=nn.Linear(4, 6),
            mix=_w(5, 3),
            b=nn.Linear(6, 2),
        ),
        TOKENS,
    ),
    "instance_norm": (lambda: seq(nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 2, 1)), IMAGE),
    "residual_of_depthwise": (
        lambda: seq(nn.Conv2d(3, 4, 1), Residual(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU()), nn.Conv2d(4, 2, 1)),
        IMAGE,
    ),
}


def _written(h: Tensor) -> Tensor:
    h[:, :3].mul_(2.0)
    return h


NETWORKS: dict[str, Network] = {
    **SHARED,
    **DERIVED,
    **GATED,
    **MOVED,
    **completeness_operators.NETWORKS,
    **TANGENTS,
    **INDEXED,
    **EXPERTS,
    **GRAPHS,
}

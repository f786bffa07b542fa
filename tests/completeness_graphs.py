"""Small graph networks by hand: the layers of torch_geometric's models, which the tests of that library's own need installed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Linear

from .zoo_base import Net

__all__ = ["GRAPHS"]

NODES = ((8, 4), (2, 20))
"""Features of eight nodes, and twenty numbers that become edges."""


def _edges(e: Tensor) -> tuple[Tensor, Tensor]:
    """Sources and targets from numbers; every node is a target once."""
    source, target = (e * 10).long().abs() % 8
    return source, torch.cat([torch.arange(8), target[8:]])


def _per_edge(target: Tensor, like: Tensor) -> Tensor:
    """The numbers of the targets in the shape of the messages."""
    return target[:, None].expand(-1, like.shape[1])


def _sum(messages: Tensor, target: Tensor) -> Tensor:
    return messages.new_zeros(8, messages.shape[1]).index_add(0, target, messages)


def _reduced(messages: Tensor, target: Tensor, how: str) -> Tensor:
    empty = messages.new_zeros(8, messages.shape[1])
    return empty.scatter_reduce(0, _per_edge(target, messages), messages, how, include_self=False)


def _degree(target: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(8).index_add(0, target, like.new_ones(len(target)))


def _softmax(logits: Tensor, target: Tensor) -> Tensor:
    """Over the edges that have one target."""
    largest = _reduced(logits, target, "amax").detach()
    powers = (logits - largest[target]).exp()
    return powers / (_sum(powers, target)[target] + 1e-16)


def _convolution(m: Net, x: Tensor, e: Tensor) -> Tensor:
    """GCN: degrees to the power of -1/2 on both sides."""
    source, target = _edges(e)
    norm = _degree(target, x).pow(-0.5)
    norm = norm.masked_fill(norm == torch.inf, 0.0)
    h = m.a(x).relu()
    return m.b(_sum(h[source] * (norm[source] * norm[target])[:, None], target))


def _attention(m: Net, x: Tensor, e: Tensor) -> Tensor:
    """GAT: the logits of an edge from both ends."""
    source, target = _edges(e)
    h = m.a(x)
    logits = F.leaky_relu(m.from_source(h)[source] + m.from_target(h)[target], 0.2)
    return m.b(_sum(h[source] * _softmax(logits, target), target).relu())


def _late_attention(m: Net, x: Tensor, e: Tensor) -> Tensor:
    """GATv2: the activation before the logits."""
    source, target = _edges(e)
    h, k = m.a(x), m.key(x)
    logits = m.score(F.leaky_relu(h[source] + k[target], 0.2))
    return m.b(_sum(h[source] * _softmax(logits, target), target).relu())


def _isomorphism(m: Net, x: Tensor, e: Tensor) -> Tensor:
    """GIN: a net of the node and the sum of its neighbours."""
    source, target = _edges(e)
    h = m.a(x)
    return m.c(m.b((1 + 0.5) * h + _sum(h[source], target)).relu())


def _many(*aggregations: str) -> Callable[[Net, Tensor, Tensor], Tensor]:
    """PNA: several reductions side by side, each also scaled by the logarithm of the degree."""

    def call(m: Net, x: Tensor, e: Tensor) -> Tensor:
        source, target = _edges(e)
        h = m.a(torch.cat([x[target], x[source]], -1))
        found = []
        for how in aggregations:
            if how == "var":
                mean = _reduced(h, target, "mean")
                found.append(_reduced(h * h, target, "mean") - mean * mean)
            else:
                found.append(_reduced(h, target, how))
        every = torch.cat(found, -1)
        size = (_degree(target, x) + 1).log()[:, None]
        return m.b(torch.cat([x, every, every * size, every / size], -1))

    return call


def _edge_function(m: Net, x: Tensor, e: Tensor) -> Tensor:
    """EdgeCNN: the largest of a net of both ends."""
    source, target = _edges(e)
    h = m.b(m.a(torch.cat([x[target], x[source] - x[target]], -1)).relu())
    return m.c(_reduced(h, target, "amax"))


def _gated(m: Net, x: Tensor, e: Tensor) -> Tensor:
    """ResGatedGraphConv."""
    source, target = _edges(e)
    h = (m.key(x)[target] + m.query(x)[source]).sigmoid() * m.value(x)[source]
    return m.b(_sum(h, target) + m.skip(x))


def _clamped_spread(m: Net, x: Tensor, e: Tensor) -> Tensor:
    """A standard deviation with a floor, which holds what it is taken of."""
    source, target = _edges(e)
    h = m.a(x)[source]
    mean = _reduced(h, target, "mean")
    return m.b((_reduced(h * h, target, "mean") - mean * mean).clamp(min=0.3).sqrt())


GRAPHS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "graph_convolution": (lambda: Net(_convolution, a=Linear(4, 5), b=Linear(5, 3)), NODES),
    "graph_attention": (
        lambda: Net(_attention, a=Linear(4, 5), from_source=Linear(5, 1, bias=False), from_target=Linear(5, 1), b=Linear(5, 3)),
        NODES,
    ),
    "graph_late_attention": (
        lambda: Net(_late_attention, a=Linear(4, 5), key=Linear(4, 5), score=Linear(5, 1), b=Linear(5, 3)),
        NODES,
    ),
    "graph_isomorphism": (lambda: Net(_isomorphism, a=Linear(4, 5), b=Linear(5, 6), c=Linear(6, 3)), NODES),
    "graph_sums_and_extremes": (lambda: Net(_many("sum", "mean", "amax", "amin"), a=Linear(8, 3), b=Linear(40, 2)), NODES),
    "graph_variances": (lambda: Net(_many("mean", "var"), a=Linear(8, 3), b=Linear(22, 2)), NODES),
    "graph_edge_function": (lambda: Net(_edge_function, a=Linear(8, 5), b=Linear(5, 4), c=Linear(4, 3)), NODES),
    "graph_gated": (
        lambda: Net(_gated, key=Linear(4, 5), query=Linear(4, 5), value=Linear(4, 5), skip=Linear(4, 5), b=Linear(5, 3)),
        NODES,
    ),
    "graph_clamped_spread": (lambda: Net(_clamped_spread, a=Linear(4, 5), b=Linear(5, 3)), NODES),
}

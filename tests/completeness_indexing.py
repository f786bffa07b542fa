"""Small networks that read and write by index: message passing, routed tokens, buffers that are filled piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zoo_base import TOKENS, VECTOR, Net

__all__ = ["INDEXED"]

Network = tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]

NODES = ((6, 4), (2, 9))
"""Features of six nodes, and nine numbers that become edges."""


def _edges(e: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows of nodes from numbers."""
    source, target = (e * 10).long().abs() % 6
    return source, target


def _graph(gather: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A layer, messages along edges, a layer."""
    return lambda: Net(lambda m, x, e: m.b(gather(F.relu(m.a(x)), *_edges(e)).relu()), a=nn.Linear(4, 5), b=nn.Linear(5, 3))


def _one(function: Callable[[Tensor], Tensor], width: int = 6) -> Callable[[], nn.Module]:
    """A layer, a function of its result, a layer."""
    return lambda: Net(lambda m, x: m.b(function(F.relu(m.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(width, 3))


def _raw(function: Callable[[Tensor], Tensor], width: int = 6) -> Callable[[], nn.Module]:
    """The same without an activation, so that every channel matters in every draw."""
    return lambda: Net(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(width, 3))


def _reduced(how: str, start: float = 0.0) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Messages reduced per target by scatter_reduce."""
    return lambda h, s, t: torch.full_like(h, start).scatter_reduce(
        0, t[:, None].expand(-1, 5), h[s], how, include_self=start != 0
    )


MESSAGES: dict[str, Network] = {
    "messages_index_add": (_graph(lambda h, s, t: h.new_zeros(6, 5).index_add(0, t, h[s])), NODES),
    "messages_index_add_in_place": (_graph(lambda h, s, t: h.new_zeros(6, 5).index_add_(0, t, h[s], alpha=2)), NODES),
    "messages_scatter_add": (_graph(lambda h, s, t: torch.zeros_like(h).scatter_add(0, t[:, None].expand(-1, 5), h[s])), NODES),
    "messages_mean": (_graph(_reduced("mean")), NODES),
    "messages_largest": (_graph(_reduced("amax", -torch.inf)), NODES),
    "messages_least": (_graph(_reduced("amin")), NODES),
    "messages_products": (
        _graph(lambda h, s, t: torch.ones_like(h).scatter_reduce(0, t[:, None].expand(-1, 5), h[s], "prod")),
        NODES,
    ),
    "messages_index_reduce": (
        _graph(lambda h, s, t: torch.zeros_like(h).index_reduce_(0, t, h[s], "amax", include_self=False)),
        NODES,
    ),
    "messages_accumulated": (_graph(lambda h, s, t: torch.zeros_like(h).index_put((t,), h[s], accumulate=True)), NODES),
    "messages_into_the_sender": (_graph(lambda h, s, t: h.index_add(0, t, h[s])), NODES),
    "messages_into_ones": (_graph(lambda h, s, t: torch.ones_like(h).index_add(0, t, h[s])), NODES),
    "messages_weighted": (
        _graph(lambda h, s, t: torch.zeros_like(h).index_add(0, t, h[s] * (h[s] * h[t]).sum(-1, keepdim=True).sigmoid())),
        NODES,
    ),
    "messages_pooled": (
        lambda: Net(
            lambda m, x, e: m.b(torch.zeros(3, 5, dtype=x.dtype).index_add(0, _edges(e)[0][:6] % 3, F.relu(m.a(x)))),
            a=nn.Linear(4, 5),
            b=nn.Linear(5, 2),
        ),
        NODES,
    ),
}

I = torch.tensor([4, 0, 2])  # noqa: E741
WRITTEN: dict[str, Network] = {
    "channels_overwritten": (_one(lambda h: h.index_copy(1, I[:2], h[:, [1, 5]])), VECTOR),
    "channels_added": (_one(lambda h: h.index_add(1, I, h[:, 3:])), VECTOR),
    "channels_scattered": (_one(lambda h: torch.zeros_like(h).scatter(1, I.expand(h.shape[0], 3), h[:, :3])), VECTOR),
    "channels_put": (_one(lambda h: h.index_put((torch.arange(h.shape[0])[:, None], I), h[:, 3:] ** 2)), VECTOR),
    "channels_cleared": (_one(lambda h: h.index_fill(1, I, 0.0) + h), VECTOR),
    "channels_filled": (_one(lambda h: h.index_fill(1, I, 1.0) + h), VECTOR),
    "positions_moved": (_one(lambda h: h.scatter(1, h.argsort(1)[:, :2, :1].expand(-1, -1, 6), h[:, :2])), TOKENS),
    "positions_by_norm": (
        _one(lambda h: h.gather(1, h.norm(dim=-1).topk(2, 1)[1][..., None].expand(-1, -1, 6))),
        TOKENS,
    ),
    "rows_into_a_mask": (_one(lambda h: torch.zeros_like(h).masked_scatter((h[..., :1] > 0).expand_as(h), h)), TOKENS),
    "picked_by_known_places": (_one(lambda h: h.gather(1, torch.tensor([[5, 0, 0]]).expand(h.shape[0], 3)), 3), VECTOR),
}


def _routed(m: Net, x: Tensor) -> Tensor:
    """Each token goes to the expert that a router picks."""
    pick = m.router(x).argmax(-1)
    out = torch.zeros(x.shape[0], 3, dtype=x.dtype)
    for k, (up, down) in enumerate(zip(m.up, m.down, strict=True)):
        rows = torch.where(pick == k)[0]
        out.index_add_(0, rows, down(F.relu(up(x[rows]))))
    return out


def _routed_by_mask(m: Net, x: Tensor) -> Tensor:
    """The same with boolean masks on both sides, behind a layer that all experts read."""
    h = F.relu(m.stem(x))
    pick, out = m.router(x).argmax(-1), torch.zeros(x.shape[0], 3, dtype=x.dtype)
    for k, (up, down) in enumerate(zip(m.up, m.down, strict=True)):
        out[pick == k] = down(F.relu(up(h[pick == k])))
    return m.head(out)


def _two_of_three(m: Net, x: Tensor) -> Tensor:
    """Each token goes to two experts, weighted."""
    weights, picks = m.router(x).softmax(-1).topk(2, -1)
    out = torch.zeros(x.shape[0], 3, dtype=x.dtype)
    for k, (up, down) in enumerate(zip(m.up, m.down, strict=True)):
        rows, slots = torch.where(picks == k)
        out.index_add_(0, rows, down(F.relu(up(x[rows]))) * weights[rows, slots, None])
    return out


def _experts(forward: Callable[[Net, Tensor], Tensor], inner: int = 4) -> Callable[[], nn.Module]:
    """Three experts, a router, a layer in front and one behind."""

    def build() -> nn.Module:
        net = Net(forward, router=nn.Linear(4, 3), stem=nn.Linear(4, inner), head=nn.Linear(3, 2))
        net.up = nn.ModuleList(nn.Linear(inner, 5) for _ in range(3))
        net.down = nn.ModuleList(nn.Linear(5, 3, bias=False) for _ in range(3))
        return net

    return build


MASK = torch.tensor([True, False, True, True, False, True])
MANY = ((40, 4),)
OPEN_SIZES: dict[str, Network] = {
    "tokens_sent_to_experts": (_experts(_routed), MANY),
    "tokens_sent_by_masks": (_experts(_routed_by_mask, 6), MANY),
    "tokens_sent_to_two_experts": (_experts(_two_of_three), MANY),
    "positive_rows": (_one(lambda h: h[h[:, 0] > 0].sum(0, keepdim=True)), MANY),
    "rows_kept": (_one(lambda h: h * torch.zeros_like(h[:, :1]).index_fill(0, (h[:, 2] > 0).nonzero()[:, 0], 1.0)), MANY),
    "rows_repeated": (
        _one(lambda h: h.repeat_interleave((h > 0).sum(-1), 0).mean(0, keepdim=True)),
        MANY,
    ),
    "first_rows": (_one(lambda h: h[: int((h[:, 0] > 0).sum())].sum(0, keepdim=True)), MANY),
    "channels_of_a_mask": (_one(lambda h: h[..., MASK], 4), VECTOR),
    "channels_put_by_a_mask": (
        _one(lambda h: torch.zeros_like(h).index_put((torch.arange(h.shape[0])[:, None], MASK.nonzero()[:, 0]), h[:, MASK])),
        VECTOR,
    ),
    "positions_of_a_mask": (_one(lambda h: h[:, MASK[:5]].flatten(1).unflatten(1, (3, 6))), TOKENS),
    "selected_by_a_mask": (_one(lambda h: h.masked_select(MASK).unflatten(0, (-1, 4)), 4), VECTOR),
}


def _widened(h: Tensor) -> Tensor:
    """The first channels of a wider tensor of zeros."""
    out = torch.zeros(*h.shape[:-1], 8, dtype=h.dtype)
    out[..., :6] = h
    return out


def _temporal_shift(h: Tensor) -> Tensor:
    """Some channels come from the position before, some from the one after."""
    out = torch.zeros_like(h)
    out[:, :-1, :2] = h[:, 1:, :2]
    out[:, 1:, 2:4] = h[:, :-1, 2:4]
    out[:, :, 4:] = h[:, :, 4:]
    return out


def _preallocated(h: Tensor) -> Tensor:
    """Memory without values, filled from both ends."""
    out = h.new_empty(h.shape[0], 12)
    out[:, :6] = h
    out.narrow(1, 6, 6).copy_(h.flip(1))
    return out


def _half_cleared(h: Tensor) -> Tensor:
    """Memory without values: one half written, the other zero."""
    out = h.new_empty(h.shape[0], 8)
    out[:, :6] = h
    out[:, 6:] = 0
    return out + F.pad(h, (2, 0))


def _chunks(h: Tensor) -> Tensor:
    """Written part by part, read through a view that was made before."""
    out = torch.zeros(h.shape[0], 9, dtype=h.dtype)
    seen = out.view(-1, 3, 3)
    out[:, :3].copy_(h[:, :3])
    out.narrow(1, 3, 3).add_(h[:, 3:]).mul_(2)
    out[:, 6:].fill_(0.0)
    return seen.transpose(1, 2).flatten(1)


def _unbound(h: Tensor) -> Tensor:
    """Single channels, one of them twice and one not at all."""
    out = torch.empty_like(h).zero_()
    for channel, k in enumerate((3, 3, 0, 1, 2)):
        out.select(-1, channel).copy_(h[:, k])
    return out


def _strided(h: Tensor) -> Tensor:
    """Every second place backwards, the rest by a transposed view."""
    out = torch.zeros(h.shape[0], 2, 6, dtype=h.dtype)
    out.transpose(1, 2)[:, ::2, 0] = h[:, :3].flip(1)
    out.view(-1, 12)[:, 4:8] += h[:, 2:]
    return out.flatten(1)


def _diagonal(h: Tensor) -> Tensor:
    """A batch of matrices of which the diagonal is written."""
    out = torch.zeros(h.shape[0], 6, 6, dtype=h.dtype)
    out.diagonal(dim1=1, dim2=2).copy_(h)
    out[:, 0, 3:].copy_(h[:, 3:])
    return out.sum(1)


def _ones_around(h: Tensor) -> Tensor:
    """Written over ones, two of which stay."""
    out = torch.ones(h.shape[0], 8, dtype=h.dtype)
    out[:, 1:7] = h
    return out


def _states(m: Net, x: Tensor) -> Tensor:
    """The states of a recurrence in one tensor."""
    states = x.new_zeros(x.shape[0], x.shape[1] + 1, 6)
    for t in range(x.shape[1]):
        states[:, t + 1] = F.relu(m.a(x[:, t]) + m.loop(states[:, t].clone()))
    return m.b(states[:, 1:])


def _somewhere(h: Tensor) -> Tensor:
    """A place that depends on the data."""
    out = torch.zeros(3, *h.shape, dtype=h.dtype)
    out[(h[:, 0] > 0).sum() % 3] = h
    return out


def _place(h: Tensor, below: int) -> Any:
    """A number that depends on the data."""
    k = (h[:, 0].relu() > 0).sum().remainder(below).item()
    torch._check(k >= 0)
    torch._check(k < below)
    return k


def _written_channel(h: Tensor) -> Tensor:
    """A channel that depends on the data is overwritten."""
    out = h[:, :3].clone()
    out.select(1, _place(h, 3)).copy_(h[:, 4])
    return out


def _written_range(h: Tensor) -> Tensor:
    """A range of channels that depends on the data, in zeros."""
    out = torch.zeros(h.shape[0], 9, dtype=h.dtype)
    out.narrow(1, _place(h, 4), 6).copy_(h)
    return out


FILLED: dict[str, Network] = {
    "zeros_widened": (_one(_widened, 8), VECTOR),
    "tokens_widened": (_one(_widened, 8), TOKENS),
    "temporal_shift": (_one(_temporal_shift), TOKENS),
    "preallocated": (_one(_preallocated, 12), VECTOR),
    "half_cleared": (_one(_half_cleared, 8), VECTOR),
    "written_chunks": (_one(_chunks, 9), VECTOR),
    "written_channels": (_one(_unbound), VECTOR),
    "written_strided": (_one(_strided, 12), VECTOR),
    "written_diagonal": (_one(_diagonal), VECTOR),
    "written_over_ones": (_one(_ones_around, 8), VECTOR),
    "written_over_itself": (_one(lambda h: h.clone().index_fill_(1, I, 0.0).add_(h)), VECTOR),
    "written_somewhere": (_one(_somewhere), VECTOR),
    "written_channel_anywhere": (_raw(_written_channel, 3), MANY),
    "written_range_anywhere": (_raw(_written_range, 9), MANY),
    "channel_anywhere": (_raw(lambda h: h.select(1, _place(h, 6))[:, None] + h), MANY),
    "range_anywhere": (_raw(lambda h: h.narrow(1, _place(h, 4), 3), 3), MANY),
    "states_of_a_recurrence": (lambda: Net(_states, a=nn.Linear(4, 6), loop=nn.Linear(6, 6), b=nn.Linear(6, 3)), TOKENS),
}


def _angles(a: Tensor, b: Tensor) -> Tensor:
    """The direction of two activations."""
    return torch.atan2(a, b)


PADDED: dict[str, Network] = {
    "padded_input_plus_channels": (
        lambda: Net(lambda m, x: m.b(F.pad(x, (0, 2)) + F.relu(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 3)),
        VECTOR,
    ),
    "input_padded_by_its_ends": (
        lambda: Net(lambda m, x: m.b(F.pad(x, (1, 1), mode="replicate") + F.relu(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 3)),
        ((9, 4),),
    ),
    "one_channel_padded": (
        lambda: Net(
            lambda m, x: m.b(F.pad(m.one(x), (1, 1)) + F.relu(m.a(x))), one=nn.Linear(4, 1), a=nn.Linear(4, 3), b=nn.Linear(3, 3)
        ),
        VECTOR,
    ),
    "directions": (
        lambda: Net(lambda m, x: m.c(_angles(m.a(x), m.b(x))), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 3)),
        VECTOR,
    ),
}


def some(like: Tensor) -> Tensor:
    """A constant with zeros, made in forward: a tensor that lies around from before could be filled later."""
    return torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0, 0.0], dtype=like.dtype)


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Two layers, a function of both results, a layer."""
    return lambda: Net(lambda m, x: m.c(function(m.a(x), m.b(x))), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 3))


ZEROS: dict[str, Network] = {
    "constant_in_some_channels": (_one(lambda h: h + some(h)), VECTOR),
    "masked_then_added": (_two(lambda a, b: a * (some(a) > 0).to(a.dtype) + b), VECTOR),
    "masks_that_share_nothing": (_two(lambda a, b: a * (torch.arange(6) < 3).to(a.dtype) + b * (torch.arange(6) > 2)), VECTOR),
    "diagonal_of_a_product": (_two(lambda a, b: (a[:, :, None] * b[:, None] * torch.eye(6, dtype=a.dtype)).sum(1)), VECTOR),
    "mixed_by_a_triangle": (_one(lambda h: h @ torch.eye(6, dtype=h.dtype).roll(1, 0)), VECTOR),
    "largest_of_some_channels": (_raw(lambda h: torch.maximum(h, -some(h))), VECTOR),
    "constant_added_at_one_position": (_one(lambda h: h + torch.eye(5, dtype=h.dtype)[0][:, None]), TOKENS),
}

INDEXED: dict[str, Network] = {**MESSAGES, **WRITTEN, **OPEN_SIZES, **FILLED, **PADDED, **ZEROS}

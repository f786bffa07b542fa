"""Small networks whose router picks slices of stacked weights: an expert has scales of its own where one index picks them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zoo_base import Net

__all__ = ["EXPERTS", "HELD_BACK"]

MANY = ((40, 4),)
FEW = ((3, 4),)
SEQUENCES = ((7, 5, 4),)
EXPERTS_COUNT, WIDTH, HIDDEN = 3, 4, 3


def _stack(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=torch.float32, device="cpu"))


def _experts(function: Callable[[Net, Tensor], Any], **more: tuple[int, ...]) -> Callable[[], nn.Module]:
    """Three experts of four inputs and outputs with three channels between them, a router, and stacks of `more` shapes."""

    def build() -> nn.Module:
        return Net(
            function,
            router=nn.Linear(WIDTH, EXPERTS_COUNT),
            up=_stack(EXPERTS_COUNT, HIDDEN, WIDTH),
            down=_stack(EXPERTS_COUNT, WIDTH, HIDDEN),
            **{name: _stack(*shape) for name, shape in more.items()},
        )

    return build


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """One matrix a position."""
    return torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1)


def _pick(m: Net, x: Tensor) -> Tensor:
    return m.router(x).argmax(-1)


def _one(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], F.relu(_times(m.up[i], x)))


def _with_biases(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return m.head @ (_times(m.down[i], F.relu(_times(m.up[i], x) + m.bias[i])) + m.shift[i]).T


def _two(m: Net, x: Tensor) -> Tensor:
    weights, i = m.router(x).softmax(-1).topk(2, -1)
    hidden = F.relu(torch.einsum("tkhd,td->tkh", m.up[i], x))
    return (torch.einsum("tkdh,tkh->tkd", m.down[i], hidden) * weights[..., None]).sum(1)


def _two_flat(m: Net, x: Tensor) -> Tensor:
    """The index is flattened twice, each time by another operator, and the weights are normalised in place."""
    weights, i = m.router(x).softmax(-1).topk(2, -1)
    weights /= weights.sum(-1, keepdim=True)
    hidden = F.relu(_times(m.up[i.reshape(-1)], x.repeat_interleave(2, 0)))
    return (_times(m.down[i.view(-1)], hidden) * weights.reshape(-1, 1)).view(len(x), 2, -1).sum(1)


def _two_in_turn(m: Net, x: Tensor) -> Tensor:
    weights, i = m.router(x).softmax(-1).topk(2, -1)
    parts = [weights[:, k, None] * _times(m.down[i[:, k]], F.relu(_times(m.up[i[:, k]], x))) for k in range(2)]
    return parts[0] + parts[1]


def _sequences(m: Net, x: Tensor) -> Tensor:
    """One expert for each position of each sequence; positions are merged and taken apart again in between."""
    i = _pick(m, x)
    hidden = F.relu((m.up[i] @ x[..., None]).squeeze(-1)).flatten(0, 1)
    return (m.down[i] @ hidden.unflatten(0, i.shape)[..., None]).squeeze(-1)


def _gated(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], F.silu(_times(m.gate[i], x)) * _times(m.up[i], x))


def _joined(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    gate, up = _times(torch.cat([m.gate[i], m.up[i]], 1), x).chunk(2, -1)
    return _times(m.down[i], F.relu(gate) * up)


def _three_layers(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], F.relu(_times(m.middle[i], F.relu(_times(m.up[i], x)))))


def _second_axis(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    hidden = F.relu(torch.einsum("dth,td->th", m.wide.index_select(1, i), x))
    return (m.down.index_select(0, i) * hidden[:, None, :]).sum(-1)


def _in_place(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], F.relu_(_times(m.up[i], x).add_(m.bias[i])))


def _in_place_through_a_view(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    hidden = torch.bmm(m.up[i], x.unsqueeze(-1))
    hidden.squeeze(-1).add_(m.bias[i])
    return _times(m.down[i], F.relu(hidden.squeeze(-1)))


def _seen_through_a_view(m: Net, x: Tensor) -> Tensor:
    """The write is read through a view that was made before it."""
    i = _pick(m, x)
    hidden = _times(m.up[i], x)
    view = hidden[:]
    hidden.mul_(_times(m.gate[i], x).detach())
    return _times(m.down[i], view)


def _own_norms(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], F.layer_norm(_times(m.up[i], x), (HIDDEN,)) * m.bias[i])


def _shared_end(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return F.relu(_times(m.up[i], x)) @ m.end


def _shared_bias(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], F.relu(_times(m.up[i], x) + m.end.sum(1)))


def _two_indices(m: Net, x: Tensor) -> Tensor:
    scores = m.router(x)
    return _times(m.down[(-scores).argmax(-1)], F.relu(_times(m.up[scores.argmax(-1)], x)))


def _first_and_second(m: Net, x: Tensor) -> Tensor:
    i = m.router(x).topk(2, -1)[1]
    return _times(m.down[i[:, 1]], F.relu(_times(m.up[i[:, 0]], x)))


def _changed_between(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    hidden = F.relu(_times(m.up[i.clone()], x))
    i.add_(1).remainder_(EXPERTS_COUNT)
    return _times(m.down[i], hidden)


def _changed_in_place(m: Net, x: Tensor) -> Tensor:
    """The same; no derivative goes through the changed index."""
    i = _pick(m, x)
    hidden = F.relu(_times(m.up[i], x))
    i.add_(1).remainder_(EXPERTS_COUNT)
    return _times(m.down[i], hidden)


def _scores_changed_between(m: Net, x: Tensor) -> Tensor:
    scores = m.router(x)
    i = scores.argmax(-1)
    with torch.no_grad():
        scores.neg_()
    return _times(m.down[scores.argmax(-1)], F.relu(_times(m.up[i], x)))


def _next_expert(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[(i + 1) % EXPERTS_COUNT], F.relu(_times(m.up[i], x)))


def _positions_mixed(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    hidden = F.relu(_times(m.up[i], x))
    return _times(m.down[i], hidden + hidden.mean(0, keepdim=True))


def _positions_turned(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], F.relu(_times(m.up[i], x)).flip(0))


def _positions_transposed(m: Net, x: Tensor) -> Tensor:
    """As many sequences as positions: shapes fit, experts do not."""
    i = _pick(m, x)
    hidden = F.relu((m.up[i] @ x[..., None]).squeeze(-1)).transpose(0, 1)
    return (m.down[i] @ hidden[..., None]).squeeze(-1)


def _returned_too(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    i = _pick(m, x)
    hidden = F.relu(_times(m.up[i], x))
    return _times(m.down[i], hidden), hidden[:20]


def _stack_and_slice(m: Net, x: Tensor) -> Tensor:
    """One expert is used by all positions as well."""
    return _one(m, x) + F.linear(F.relu(F.linear(x, m.up[1])), m.down[1])


def _one_plus(m: Net, x: Tensor) -> Tensor:
    i = _pick(m, x)
    return _times(m.down[i], (1 + m.bias[i]) * _times(m.up[i], x))


BIAS = (EXPERTS_COUNT, HIDDEN)
EXPERTS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "experts_picked": (_experts(_one), MANY),
    "experts_with_biases": (_experts(_with_biases, bias=BIAS, shift=(EXPERTS_COUNT, WIDTH), head=(2, WIDTH)), MANY),
    "two_experts_picked": (_experts(_two), MANY),
    "two_experts_picked_flat": (_experts(_two_flat), MANY),
    "two_experts_picked_in_turn": (_experts(_two_in_turn), MANY),
    "experts_of_sequences": (_experts(_sequences), SEQUENCES),
    "gated_experts": (_experts(_gated, gate=(EXPERTS_COUNT, HIDDEN, WIDTH)), MANY),
    "gate_and_up_joined": (_experts(_joined, gate=(EXPERTS_COUNT, HIDDEN, WIDTH)), MANY),
    "experts_of_three_layers": (_experts(_three_layers, middle=(EXPERTS_COUNT, HIDDEN, HIDDEN)), MANY),
    "experts_on_the_second_axis": (_experts(_second_axis, wide=(WIDTH, EXPERTS_COUNT, HIDDEN)), MANY),
    "experts_in_place": (_experts(_in_place, bias=BIAS), MANY),
    "experts_with_norms": (_experts(_own_norms, bias=BIAS), MANY),
    "experts_with_a_shared_end": (_experts(_shared_end, end=(HIDDEN, WIDTH)), MANY),
    "experts_with_a_shared_bias": (_experts(_shared_bias, end=(HIDDEN, WIDTH)), MANY),
    "two_indices": (_experts(_two_indices), MANY),
    "first_and_second_choice": (_experts(_first_and_second), MANY),
    "scores_changed_between": (_experts(_scores_changed_between), MANY),
    "positions_of_experts_mixed": (_experts(_positions_mixed), MANY),
    "positions_of_experts_turned": (_experts(_positions_turned), MANY),
    "positions_of_experts_transposed": (_experts(_positions_transposed), ((5, 5, 4),)),
    "experts_returned_too": (_experts(_returned_too), MANY),
    "stack_and_slice": (_experts(_stack_and_slice), MANY),
}

HELD_BACK: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], int]] = {
    "as_many_tokens_as_experts": (_experts(_one), FEW, 10),
    "index_changed_between": (_experts(_changed_between), MANY, 4),
    "index_changed_in_place": (_experts(_changed_in_place), MANY, 4),
    "next_expert": (_experts(_next_expert), MANY, 4),
    "one_plus": (_experts(_one_plus, bias=BIAS), MANY, 19),
    "in_place_through_a_view": (_experts(_in_place_through_a_view, bias=BIAS), MANY, 4),
    "seen_through_a_view": (_experts(_seen_through_a_view, gate=(EXPERTS_COUNT, HIDDEN, WIDTH)), MANY, 7),
    "one_token": (_experts(_one), ((1, 4),), 4),
}
"""Networks of which a derivative does not see the whole group, or of which it is known that not all is found; the number found.

One of each is the router's, whose greatest entry stays the greatest."""

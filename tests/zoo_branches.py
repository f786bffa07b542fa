"""Networks whose activations meet or part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .zoo_base import IMAGE, TOKENS, VECTOR, Case, Net, Residual, seq


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channel shuffle as ShuffleNet writes it."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def squeeze_excite(m: Net, x: torch.Tensor) -> torch.Tensor:
    """A gate computed from pooled channels multiplies the channels."""
    h = F.relu(m.stem(x))
    gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(h, 1)))))
    return m.head(h * gate)


def mix(m: Net, x: torch.Tensor) -> torch.Tensor:
    """Channels, then tokens, then channels, then tokens."""
    h = m.b(F.relu(m.a(x)).transpose(1, 2))
    return m.d(m.c(F.relu(h).transpose(1, 2)).transpose(1, 2))


BRANCHED: dict[str, Case] = {
    "residual": Case(
        lambda: seq(
            nn.Conv2d(3, 5, 3),
            nn.ReLU(),
            Residual(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 1)),
            nn.ReLU(),
            Residual(nn.Conv2d(5, 7, 1), nn.ReLU(), nn.Conv2d(7, 5, 3, padding=1)),
            nn.Conv2d(5, 2, 1),
        ),
        IMAGE,
        5 + 6 + 7,  # one stream of 5, two hidden groups
    ),
    "residual_projection": Case(
        lambda: Net(
            lambda m, x: m.head(F.relu(m.skip(h := F.relu(m.stem(x))) + m.b(F.relu(m.a(h))))),
            stem=nn.Conv2d(3, 5, 3),
            skip=nn.Conv2d(5, 8, 1, stride=2),
            a=nn.Conv2d(5, 6, 3, stride=2, padding=1),
            b=nn.Conv2d(6, 8, 3, padding=1),
            head=nn.Conv2d(8, 2, 1),
        ),
        IMAGE,
        5 + 6 + 8,
    ),
    "residual_from_input": Case(lambda: seq(Residual(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)), nn.Linear(4, 3)), VECTOR, 6),
    "pre_activation": Case(
        lambda: seq(
            nn.Conv2d(3, 5, 3),
            Residual(nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1)),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 2, 1),
        ),
        IMAGE,
        5 + 6 + 5,  # every norm opens a group; the stream itself is read by norms and held
    ),
    "inplace_add": Case(
        lambda: Net(
            lambda m, x: m.head(F.relu_(m.b(F.relu(m.a(h := F.relu(m.stem(x))))).add_(h))),
            stem=nn.Linear(4, 5),
            a=nn.Linear(5, 7),
            b=nn.Linear(7, 5),
            head=nn.Linear(5, 3),
        ),
        VECTOR,
        5 + 7,
    ),
    "concat": Case(
        lambda: Net(
            lambda m, x: m.d(F.relu(m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 1)))),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(3, 5, 3),
            c=nn.Conv2d(9, 6, 1),
            d=nn.Conv2d(6, 2, 1),
        ),
        IMAGE,
        4 + 5 + 6,
    ),
    "dense_block": Case(
        lambda: Net(
            lambda m, x: m.c(torch.cat([h := F.relu(m.a(x)), F.relu(m.b(h))], 1)),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(4, 5, 1),
            c=nn.Conv2d(9, 2, 1),
        ),
        IMAGE,
        4 + 5,
    ),
    "channel_shuffle": Case(
        lambda: Net(
            lambda m, x: m.c(F.relu(m.b(shuffle(F.relu(m.a(x)), 2)))),
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(6, 8, 1, groups=2),
            c=nn.Conv2d(8, 2, 1),
        ),
        IMAGE,
        6 + 8,
    ),
    "channel_shuffle_module": Case(
        lambda: seq(nn.Conv2d(3, 6, 1), nn.ChannelShuffle(3), nn.ReLU(), nn.Conv2d(6, 2, 1)), IMAGE, 6
    ),
    "split_halves": Case(
        lambda: Net(
            lambda m, x: m.c(torch.cat([(h := F.relu(m.a(x)).chunk(2, 1))[0], F.relu(m.b(h[1]))], 1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(4, 5, 1),
            c=nn.Conv2d(9, 2, 1),
        ),
        IMAGE,
        8 + 5,
    ),
    "squeeze_excite": Case(
        lambda: Net(
            squeeze_excite, stem=nn.Conv2d(3, 6, 3), down=nn.Conv2d(6, 4, 1), up=nn.Conv2d(4, 6, 1), head=nn.Conv2d(6, 2, 1)
        ),
        IMAGE,
        6 + 4,
    ),
    "two_heads": Case(
        lambda: Net(
            lambda m, x: {"b": m.b(h := F.relu(m.a(x))), "c": [m.c(h)]}, a=nn.Linear(4, 5), b=nn.Linear(5, 3), c=nn.Linear(5, 2)
        ),
        VECTOR,
        5,
    ),
    "two_inputs": Case(
        lambda: Net(lambda m, x, y: m.c(F.relu(m.a(x) + m.b(y))), a=nn.Linear(4, 5), b=nn.Linear(6, 5), c=nn.Linear(5, 2)),
        ((3, 4), (3, 6)),
        5,
    ),
    "maximum": Case(
        lambda: Net(lambda m, x: m.c(torch.maximum(m.a(x), m.b(x))), a=nn.Linear(4, 5), b=nn.Linear(4, 5), c=nn.Linear(5, 2)),
        VECTOR,
        5,
    ),
    "product": Case(
        lambda: Net(lambda m, x: m.c(m.a(x) * m.b(x)), a=nn.Linear(4, 5), b=nn.Linear(4, 5), c=nn.Linear(5, 2)), VECTOR, 5 + 5
    ),
    "halves_of_other_powers": Case(
        lambda: Net(
            lambda m, x: m.c((h := m.a(x))[:, ::2].abs().sqrt().square()) + m.b(h[:, 1::2]),
            a=nn.Linear(4, 6),
            b=nn.Linear(3, 2),
            c=nn.Linear(3, 2),
        ),
        VECTOR,
        3 + 3,  # one layer writes both groups; the first is counted in halves, of which the second knows nothing
    ),
    "attention": Case(
        lambda: Net(
            lambda m, x: m.attention(x, x, x, need_weights=False)[0], attention=nn.MultiheadAttention(6, 2, batch_first=True)
        ),
        ((2, 5, 6),),
        6 + 6,  # query against key, value into the output projection
    ),
    "transformer_layer": Case(
        lambda: nn.TransformerEncoderLayer(6, 2, 7, dropout=0.0, batch_first=True, norm_first=True),
        ((2, 5, 6),),
        6 + 6 + 6 + 6 + 7,  # norm1, query-key, value, norm2, hidden units; the stream starts at the input
    ),
    "mixer": Case(
        lambda: Net(
            mix, a=nn.Linear(4, 6), b=nn.Linear(5, 7, bias=False), c=nn.Linear(6, 3, bias=False), d=nn.Linear(7, 2, bias=False)
        ),
        TOKENS,
        6 + 7 + 1,  # channels, tokens, and the whole of c against the whole of d
    ),
    "mixer_with_biases": Case(
        lambda: Net(mix, a=nn.Linear(4, 6), b=nn.Linear(5, 7), c=nn.Linear(6, 3), d=nn.Linear(7, 2)),
        TOKENS,
        1 + 1 + 1,  # a bias along one axis leaves no room along the other: one number after each of a, b and c
    ),
}

"""A small transformer with the normalisation before each branch; the rows of an image are its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """Attention and a two-layer ReLU network, each behind a LayerNorm and added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys = nn.Linear(width, width), nn.Linear(width, width)
        self.values, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        y = self.norm1(x)
        mixed = nn.functional.scaled_dot_product_attention(split(self.queries(y)), split(self.keys(y)), split(self.values(y)))
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(self.up(self.norm2(x)).relu())


class Transformer(nn.Module):
    """An embedding of the rows, places, layers, a norm and a linear head on the mean of the tokens."""

    def __init__(self, rows: int, row_size: int, classes: int, width: int = 32, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.rows = rows
        self.embed = nn.Linear(row_size, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, rows, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, rows, columns) to (batch, classes)."""
        x = x.transpose(1, 2).flatten(2)
        return self.head(self.norm(self.layers(self.embed(x) + self.places)).mean(1))

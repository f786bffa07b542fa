"""Models of the tests of checkpoints."""

from __future__ import annotations

import torch
from torch import nn

from tests.large_checkpoint import Block


class Blocks(nn.Module):
    """A stack of blocks; the head is tied to the embedding."""

    def __init__(self, width: int = 8, inner: int = 12, depth: int = 3, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.layers = nn.ModuleList(Block(width, inner) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, 16, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))

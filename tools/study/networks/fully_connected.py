"""The fully connected network: linear layers, ReLU, and a normalisation behind each hidden layer or none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from .norms import norm_1d


class FullyConnected(nn.Module):
    """Layers of the given widths, the input's first. Inputs are flattened.

    Args:
        widths: of the input, the hidden layers and the output.
        norm: "none", "batchnorm", "groupnorm" or "weightnorm".
        bias: whether the layers have biases.
    """

    def __init__(self, widths: Sequence[int], norm: str = "none", bias: bool = True) -> None:
        super().__init__()
        self.widths, self.norm = tuple(widths), norm
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=bias) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(norm_1d(norm, width) for width in self.widths[1:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) to (batch, classes)."""
        x = x.flatten(1)
        for layer, norm in zip(list(self.layers)[:-1], self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.layers[-1](x)


def widths_of_mlp(inputs: int, depth: int, width: int, classes: int) -> list[int]:
    """`depth` linear layers of one hidden width."""
    return [inputs, *[width] * (depth - 1), classes]


def widths_of_autoencoder(inputs: int) -> list[int]:
    """The paper's 784-1000-500-250-30 and back; for the digits 64-128-64-16-4 and back."""
    half = [inputs, 1000, 500, 250, 30] if inputs > 100 else [inputs, 128, 64, 16, 4]
    return [*half, *half[-2::-1]]

"""Several fully connected networks of one structure, trained side by side by one batched multiplication a layer.

A stack is an ordinary module: `fxenorm.analyze` finds the scales of all its networks, and one `Plan.step` is one cycle of each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .fully_connected import FullyConnected
from .norms import groups_of


class StackedLinear(nn.Module):
    """The same layer of all networks: weight (networks, out, in), bias (networks, 1, out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        biases = [layer.bias.detach()[None] for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None

    def effective(self) -> Tensor:
        """The weights that multiply, (networks, out, in)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(networks, batch, in) to (networks, batch, out)."""
        x = torch.bmm(x, self.effective().transpose(1, 2))
        return x if self.bias is None else x + self.bias


class StackedWeightNorm(StackedLinear):
    """The same with each row of a weight as a length, the gain, times a direction."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__(layers)
        self.gain = nn.Parameter(self.weight.detach().norm(dim=2, keepdim=True))

    def effective(self) -> Tensor:
        """The weights that multiply, (networks, out, in)."""
        return self.weight * (self.gain / self.weight.norm(dim=2, keepdim=True))


class StackedNorm(nn.Module):
    """A BatchNorm or GroupNorm over the channels of all networks, which norm each channel or group by itself."""

    def __init__(self, kind: str, networks: int, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        channels = networks * width
        self.inner = nn.BatchNorm1d(channels) if kind == "batchnorm" else nn.GroupNorm(networks * groups_of(width), channels)

    def of(self, networks: int) -> StackedNorm:
        """The same for another number of networks, with fresh gains."""
        return StackedNorm(self.kind, networks, self.width)

    def forward(self, x: Tensor) -> Tensor:
        """(networks, batch, width) to the same."""
        networks, batch, width = x.shape
        flat = x.transpose(0, 1).reshape(batch, networks * width)
        return self.inner(flat).reshape(batch, networks, width).transpose(0, 1)


class Stack(nn.Module):
    """A stack of fully connected networks, with their weights; the normalisations begin anew.

    Args:
        networks: at least one; all of the same widths, norm and biases.
    """

    def __init__(self, networks: Sequence[FullyConnected]) -> None:
        super().__init__()
        first = networks[0]
        self.norm, self.count, self.widths = first.norm, len(networks), first.widths
        kind = StackedWeightNorm if first.norm == "weightnorm" else StackedLinear
        columns = zip(*(network.layers for network in networks), strict=True)
        self.layers = nn.ModuleList(kind(column) for column in columns)
        plain = first.norm not in ("batchnorm", "groupnorm")
        self.norms = nn.ModuleList(
            nn.Identity() if plain else StackedNorm(first.norm, self.count, width) for width in first.widths[1:-1]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(networks, batch, in) to (networks, batch, classes)."""
        for layer, norm in zip(list(self.layers)[:-1], self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.layers[-1](x)

    def network(self, number: int) -> FullyConnected:
        """A copy of one of the networks; for stacks without norms."""
        layers = list(enumerate(self.layers))
        with torch.device("meta"):
            alone = FullyConnected(self.widths, self.norm, bias=self.layers[0].bias is not None)
        values = {f"layers.{i}.weight": layer.weight[number] for i, layer in layers}
        values |= {f"layers.{i}.bias": layer.bias[number, 0] for i, layer in layers if layer.bias is not None}
        alone.load_state_dict({name: value.detach().clone() for name, value in values.items()}, assign=True)
        return alone

    def select(self, which: Tensor) -> Stack:
        """A stack of some of these networks, in any order and number; the normalisations begin anew.

        Args:
            which: (networks of the new stack,) int64.
        """
        chosen = copy.deepcopy(self)
        chosen.count = len(which)
        for layer in chosen.layers:
            for name, parameter in layer.named_parameters():
                setattr(layer, name, nn.Parameter(parameter.detach()[which]))
        chosen.norms = nn.ModuleList(norm.of(chosen.count) if isinstance(norm, StackedNorm) else norm for norm in self.norms)
        return chosen

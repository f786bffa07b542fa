"""The two nets: depthwise convolutions with BatchNorm, and a transformer with RMSNorm and SwiGLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution, its BatchNorm and a ReLU."""
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(after), nn.ReLU()]


class DepthwiseNet(nn.Module):
    """A convolution of stride 2, six pairs of a depthwise 3 x 3 and a pointwise one, the mean over places, a linear layer."""

    def __init__(self, channels: int = 32, pairs: int = 6) -> None:
        super().__init__()
        layers = _convolution(1, channels, 3, 2)
        for _ in range(pairs):
            layers += _convolution(channels, channels, 3, 1, channels) + _convolution(channels, channels, 1)
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 16, 16) images to (N, 10) logits."""
        return self.head(self.body(images).mean((2, 3)))

    def folded(self) -> DepthwiseNet:
        """The same function in eval mode with the BatchNorms in the convolutions; this net stays as it is."""
        made = DepthwiseNet(1, 0)
        layers: list[nn.Module] = []
        for number in range(0, len(self.body), 3):
            # The fused bias does not ask for a gradient, which would hold all scales that move it.
            fused = fuse_conv_bn_eval(self.body[number].eval(), self.body[number + 1].eval())
            layers += [fused.requires_grad_(True), nn.ReLU()]
        made.body, made.head = nn.Sequential(*layers), self.head
        return made.eval()


class _Attention(nn.Module):
    """Attention with a layer for each of q, k, v and o."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A pre-norm block of attention and SwiGLU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention = _Attention(width, heads)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Transformer(nn.Module):
    """Three pre-norm blocks over the 16 patches of a digit, the mean over them, a linear layer."""

    def __init__(self, width: int = 64, heads: int = 4, hidden: int = 128, blocks: int = 3) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(4, width, bias=False), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList([_Block(width, heads, hidden) for _ in range(blocks)])
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, 10, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """(N, 16, 4) patches to (N, 10) logits."""
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))

    def folded(self) -> Transformer:
        """This net: it has no BatchNorm."""
        return self.eval()


NETS: dict[str, Callable[[], DepthwiseNet | Transformer]] = {"depthwise": DepthwiseNet, "transformer": Transformer}
SEEDS = {"depthwise": (0, 1, 2, 3), "transformer": (0, 1, 2)}
EPOCHS = {"depthwise": 15, "transformer": 40}

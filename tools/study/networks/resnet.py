"""ResNet-18 for small images, with learned 1 × 1 shortcuts in every block or with the standard ones."""

from __future__ import annotations

from torch import Tensor, nn

from .norms import norm_2d


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut: the input itself where nothing changes and it is not to be learned, else a 1×1."""

    def __init__(self, before: int, after: int, stride: int, norm: str, learned: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = norm_2d(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = norm_2d(norm, after)
        self.shortcut: nn.Module = nn.Identity()
        if learned or stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm_2d(norm, after))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, height, width) to (batch, after, height / stride, width / stride)."""
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """Eight blocks of 64, 128, 256 and 512 channels behind a 3×3 stem.

    Args:
        channels: of the images.
        classes: number of outputs.
        width: a factor on the numbers of channels.
        norm: behind every convolution: "batchnorm", "groupnorm" or "none".
        shortcuts: "learned": a 1×1 convolution in every block, as in the paper; "standard": the input itself where it fits.
    """

    def __init__(self, channels: int, classes: int, width: float = 1.0, norm: str = "none", shortcuts: str = "learned") -> None:
        super().__init__()
        counts = [max(4, round(width * count)) for count in (64, 128, 256, 512)]
        self.stem = nn.Conv2d(channels, counts[0], 3, 1, 1, bias=False)
        self.stem_norm = norm_2d(norm, counts[0])
        blocks, before = [], counts[0]
        for stage, after in enumerate(counts):
            for place in range(2):
                stride = 2 if stage and not place else 1
                blocks.append(Block(before, after, stride, norm, shortcuts == "learned"))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes)."""
        x = self.blocks(self.stem_norm(self.stem(x)).relu())
        return self.head(x.mean((2, 3)))

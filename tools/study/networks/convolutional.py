"""The nine-layer convolutional network of the paper's CIFAR-10 experiment, on 28 × 28 crops."""

from __future__ import annotations

from torch import Tensor, nn

from .norms import norm_2d


class NineLayers(nn.Module):
    """3 × [3×3, 128], pool, 3 × [3×3, 256], pool, 3×3 320, 1×1 320, 1×1 classes, average pool; no biases.

    Args:
        channels: of the images.
        classes: number of outputs.
        width: a factor on the numbers of channels.
        norm: "batchnorm" or "groupnorm" stands behind the third and the sixth layer, as in the released network; or "none".
        head: "released": the last layer has a border of zeros and a ReLU, and a 5×5 window of its 9×9 map is averaged, which the
            release does; "average": the mean of the whole map, for images of any size.
    """

    def __init__(self, channels: int, classes: int, width: float = 1.0, norm: str = "none", head: str = "released") -> None:
        super().__init__()
        few, more, most = (max(4, round(width * count)) for count in (128, 256, 320))
        steps = [channels, few, few, few, more, more, more, most, most, classes]
        kernels = [3] * 7 + [1, 1]
        borders = [1] * 7 + [0, 1 if head == "released" else 0]
        self.layers = nn.ModuleList(
            nn.Conv2d(steps[i], steps[i + 1], kernels[i], padding=borders[i], bias=False) for i in range(9)
        )
        self.norms = nn.ModuleDict({str(i): norm_2d(norm, steps[i + 1]) for i in (2, 5)})
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes)."""
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if str(number) in self.norms:
                x = self.pool(self.norms[str(number)](x).relu())
            elif number < 8:
                x = x.relu()
        if self.head == "released":
            return nn.functional.avg_pool2d(x.relu(), 5, 5).flatten(1)
        return x.mean((2, 3))

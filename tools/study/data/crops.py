"""The augmentation of the paper's convolutional experiment: a random crop behind a border of two pixels, and a mirror."""

from __future__ import annotations

import torch
from torch import Tensor

BORDER = 2


def random_crop(images: Tensor, size: int, flip: bool, random: torch.Generator) -> Tensor:
    """A crop at a random place of each image, with a border of zeros added first, and a mirror image in half of the cases.

    Args:
        images: (batch, channels, rows, columns).
        size: rows and columns of a crop.
        flip: whether to mirror.
        random: the source of the places.

    Returns:
        (batch, channels, size, size), on the device of the images.
    """
    count, _, rows, columns = images.shape
    padded = torch.nn.functional.pad(images, [BORDER] * 4)
    top = torch.randint(rows + 2 * BORDER - size + 1, (count,), generator=random)
    left = torch.randint(columns + 2 * BORDER - size + 1, (count,), generator=random)
    line = torch.arange(size)
    across = left[:, None] + line
    if flip:
        mirrored = torch.rand(count, generator=random) < 0.5
        across = torch.where(mirrored[:, None], across.flip(1), across)
    down = (top[:, None] + line).to(images.device)
    across = across.to(images.device)
    chosen = torch.arange(count, device=images.device)
    return padded[chosen[:, None, None], :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle of each image, (..., rows, columns) to (..., size, size)."""
    rows, columns = images.shape[-2:]
    top, left = (rows - size) // 2, (columns - size) // 2
    return images[..., top : top + size, left : left + size]

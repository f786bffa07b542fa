"""`Task`: images in three parts, and how batches are made of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .crops import centre_crop, random_crop


@dataclass(frozen=True)
class Part:
    """Images (n, channels, rows, columns), uint8 or float32, and their classes (n,)."""

    images: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def and_also(self, other: Part) -> Part:
        """Both, one after the other."""
        return Part(torch.cat([self.images, other.images]), torch.cat([self.classes, other.classes]))


@dataclass(frozen=True)
class Task:
    """Data to learn from.

    Attributes:
        train, validation, test: the parts; the last is looked at once, at the chosen rate.
        mean, deviation: by channel, what images are standardised with.
        classes: number of classes.
        crop: rows and columns that the network sees; 0: all.
        flip: whether training images are mirrored at random, where they are cropped.
    """

    train: Part
    validation: Part
    test: Part
    mean: Sequence[float]
    deviation: Sequence[float]
    classes: int = 10
    crop: int = 0
    flip: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an image, as a network sees it."""
        channels, rows, columns = self.train.images.shape[1:]
        return (channels, self.crop or rows, self.crop or columns)

    @property
    def fingerprint(self) -> str:
        """A short hash of all images and classes: other data, other results."""
        value = 0
        for part in (self.train, self.validation, self.test):
            value = zlib.crc32(part.images.contiguous().numpy().tobytes(), value)
            value = zlib.crc32(part.classes.contiguous().numpy().tobytes(), value)
        return f"{value:08x}"

    def parts(self, purpose: str) -> tuple[Part, Part]:
        """What a run trains on and what it is scored on, by its purpose (see `Configuration`)."""
        if purpose == "tune":
            return self.train, self.validation
        if purpose == "report":
            return self.train.and_also(self.validation), self.test
        return self.train, self.test

    def inputs(self, images: Tensor, random: Sequence[torch.Generator] | None = None) -> Tensor:
        """Standardised float32 images.

        Args:
            images: (runs, batch, channels, rows, columns).
            random: one generator a run: crops and mirrors at random; None: the centre.

        Returns:
            (runs, batch, *shape).
        """
        if self.crop and random is not None:
            images = torch.stack([random_crop(x, self.crop, self.flip, source) for x, source in zip(images, random, strict=True)])
        elif self.crop:
            images = centre_crop(images, self.crop)
        # Data are uint8 where they come from image files and standardised here, so that they fit in memory.
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        deviation = torch.tensor(self.deviation, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        return (images.to(torch.float32) / scale - mean) / deviation

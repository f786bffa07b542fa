"""Scikit-learn's digits for the two nets: 1000 images to train on, 797 to test on, drawn once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TRAIN = 1000
CALIBRATION = 256


@dataclass(frozen=True)
class Digits:
    """Images in the form of a net, and their classes."""

    train: Tensor
    train_classes: Tensor
    test: Tensor
    test_classes: Tensor

    @property
    def calibration(self) -> Tensor:
        """The training images on which ranges are observed, in float64."""
        return self.train[:CALIBRATION].double()


def digits(net: str) -> Digits:
    """The digits as 16 x 16 images, or as 16 patches of 2 x 2 for the transformer."""
    from sklearn.datasets import load_digits

    found, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    images = torch.as_tensor(found, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
    labels = torch.as_tensor(classes, dtype=torch.int64)[order]
    if net == "transformer":
        inputs = F.unfold(images, 2, stride=2).transpose(1, 2).contiguous()
    else:
        inputs = F.interpolate(images, scale_factor=2, mode="bilinear")
    return Digits(inputs[:TRAIN], labels[:TRAIN], inputs[TRAIN:], labels[TRAIN:])

"""The normalisations that may stand between two layers."""

from __future__ import annotations

from torch import nn


def groups_of(channels: int) -> int:
    """The number of groups of a GroupNorm: the largest divisor with at least 8 channels a group where there are as many."""
    most = max(1, channels // 8)
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def norm_1d(kind: str, features: int) -> nn.Module:
    """The normalisation behind a fully connected layer; WeightNorm stands in the layer itself."""
    if kind == "batchnorm":
        return nn.BatchNorm1d(features)
    if kind == "groupnorm":
        return nn.GroupNorm(groups_of(features), features)
    return nn.Identity()


def norm_2d(kind: str, channels: int) -> nn.Module:
    """The normalisation behind a convolution."""
    if kind == "batchnorm":
        return nn.BatchNorm2d(channels)
    if kind == "groupnorm":
        return nn.GroupNorm(groups_of(channels), channels)
    return nn.Identity()

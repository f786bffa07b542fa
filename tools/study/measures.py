"""Norms and imbalances of the networks of a stack, or of one network."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .networks.build import layers_of
from .networks.fully_connected import FullyConnected
from .networks.stack import Stack

if TYPE_CHECKING:
    from .training import Training


def _weights(model: nn.Module) -> list[Tensor]:
    """The weights that multiply, (networks, out, in), by layer; empty for networks that are not fully connected."""
    if isinstance(model, Stack):
        return [layer.effective().detach() for layer in model.layers]
    return [layer.weight.detach()[None] for layer in model.layers] if isinstance(model, FullyConnected) else []


def norms(training: Training) -> list[float]:
    """The 2-norm of the weights of the layers, by run."""
    weights = _weights(training.model)
    if weights:
        return torch.stack([weight.square().sum((1, 2)) for weight in weights]).sum(0).sqrt().tolist()
    return [float(sum(layer.weight.detach().square().sum() for layer in layers_of(training.model)) ** 0.5)]


def imbalances(training: Training) -> list[float]:
    """The largest |log(N / P)| / 2 of a hidden channel, by run: norms after and before it, without the normalisations between.

    NaN where the network is not fully connected and has normalisations.
    """
    weights = _weights(training.model)
    if weights:
        worst = [
            (after.square().sum(1).log() - before.square().sum(2).log()).abs().nan_to_num(0.0, 0.0, 0.0).amax(1) / 2
            for before, after in pairwise(weights)
        ]
        return torch.stack(worst).amax(0).tolist()
    if training.of[0].method.norm != "none":
        return [float("nan")]
    return [float(training.plan().imbalance())]


def norms_before_batchnorm(training: Training) -> list[list[float]]:
    """By run and layer, the norm of each weight in front of a BatchNorm, which sets its effective learning rate; else empty."""
    if training.of[0].method.norm != "batchnorm":
        return []
    weights = _weights(training.model)
    if weights:
        return torch.stack([weight.flatten(1).norm(dim=1) for weight in weights[:-1]], dim=1).tolist()
    return [[float(layer.weight.detach().norm()) for layer in layers_of(training.model)[:-1]]]

"""From a configuration to its network, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ..configuration import Configuration, StudyError
from .convolutional import NineLayers
from .fully_connected import FullyConnected, widths_of_autoencoder, widths_of_mlp
from .resnet import ResNet18
from .transformer import Transformer

Shape = Sequence[int]


def _mlp(of: Configuration, shape: Shape, classes: int, norm: str) -> nn.Module:
    inputs = shape[0] * shape[1] * shape[2]
    return FullyConnected(widths_of_mlp(inputs, of.depth, round(of.width), classes), norm, of.bias)


def _autoencoder(of: Configuration, shape: Shape, classes: int, norm: str) -> nn.Module:
    return FullyConnected(widths_of_autoencoder(shape[0] * shape[1] * shape[2]), norm, of.bias)


def _conv(of: Configuration, shape: Shape, classes: int, norm: str) -> nn.Module:
    return NineLayers(shape[0], classes, of.width, norm, of.variant or ("released" if shape[1] == 28 else "average"))


def _resnet18(of: Configuration, shape: Shape, classes: int, norm: str) -> nn.Module:
    return ResNet18(shape[0], classes, of.width, norm, of.variant or "learned")


def _transformer(of: Configuration, shape: Shape, classes: int, norm: str) -> nn.Module:
    if norm != "none":
        raise StudyError(f"the transformer has norms of its own: it cannot be trained with {norm}")
    return Transformer(shape[1], shape[0] * shape[2], classes, round(of.width))


NETWORKS: dict[str, Callable[[Configuration, Shape, int, str], nn.Module]] = {
    "mlp": _mlp,
    "conv": _conv,
    "autoencoder": _autoencoder,
    "resnet18": _resnet18,
    "transformer": _transformer,
}
"""Every experiment's network: from configuration, shape of an image (channels, rows, columns), classes and norm."""

STACKABLE = ("mlp", "autoencoder")
"""Experiments whose networks are trained as a stack."""


def layers_of(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The linear and convolution layers, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def make_network(of: Configuration, shape: Shape, classes: int, norm: str) -> nn.Module:
    """The network of a configuration, with PyTorch's initialisation, on the CPU.

    Args:
        of: the configuration.
        shape: of an image, as the network sees it: channels, rows, columns.
        classes: number of outputs.
        norm: in place of the method's.

    Raises:
        StudyError: there is no such experiment, or its network cannot be had with that norm.
    """
    if of.experiment not in NETWORKS:
        raise StudyError(f"no experiment is called {of.experiment!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[of.experiment](of, shape, classes, norm)


def put_weight_norm(model: nn.Module) -> None:
    """Parametrises every layer as a length times a direction, with the weights that are there."""
    for layer in layers_of(model):
        weight_norm(layer)

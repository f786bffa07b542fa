"""The weights that training starts from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fxenorm

from .configuration import Configuration, StudyError
from .networks.build import layers_of, make_network
from .plans import plan_of

MakePlan = Callable[[], fxenorm.Plan]
"""Makes the plan of the network at hand, for starts that need it."""

FACTOR = 5.0
"""The largest factor by which a start multiplies a layer; the least is 1 over it."""


def _he(model: nn.Module, random: torch.Generator) -> None:
    """He's initialisation in every layer, biases zero."""
    for layer in layers_of(model):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _multiply_layers(model: nn.Module, random: torch.Generator, same_function: bool) -> None:
    """Multiplies each layer of a chain by a factor from 1/5 to 5, with the product 1 or with any."""
    layers = layers_of(model)
    logs = math.log(FACTOR) * (2 * torch.rand(len(layers), generator=random) - 1)
    if same_function:
        logs = logs - logs.mean()
        logs = logs * min(1.0, math.log(FACTOR) / float(logs.abs().max()))
    with torch.no_grad():
        for layer, log in zip(layers, logs, strict=True):
            layer.weight.mul_(math.exp(float(log)))


def _default(model: nn.Module, plan: MakePlan, random: torch.Generator) -> None:
    """PyTorch's own initialisation stays."""


def _start_he(model: nn.Module, plan: MakePlan, random: torch.Generator) -> None:
    """He's initialisation."""
    _he(model, random)


def _layers(model: nn.Module, plan: MakePlan, random: torch.Generator) -> None:
    """He's initialisation, each layer times a factor; the product is 1, so that the function is that of `he`."""
    _he(model, random)
    _multiply_layers(model, random, same_function=True)


def _wild(model: nn.Module, plan: MakePlan, random: torch.Generator) -> None:
    """He's initialisation, each layer times a factor, with a free product: another function."""
    _he(model, random)
    _multiply_layers(model, random, same_function=False)


def _channels(model: nn.Module, plan: MakePlan, random: torch.Generator) -> None:
    """He's initialisation, each scale that the network has times a factor from 1/e to e: the function of `he`."""
    _he(model, random)
    found = plan()
    found.rescale(2 * torch.rand(found.num_scales, generator=random) - 1)


STARTS: dict[str, Callable[[nn.Module, MakePlan, torch.Generator], None]] = {
    "he": _start_he,
    "default": _default,
    "layers": _layers,
    "channels": _channels,
    "wild": _wild,
}
"""By name, what makes the weights of a network without norms; "he", "layers" and "channels" of a seed are one function."""

_CHAINS_ALONE = ("layers", "wild")
_CHAINS = ("mlp", "autoencoder", "conv")


def start(of: Configuration, example: Tensor, classes: int) -> nn.Module:
    """The network of a configuration with its starting weights.

    The weights are made in a network without norms, so that all methods of a seed start from the same.

    Args:
        of: the configuration.
        example: (batch, channels, rows, columns), as the network sees images.
        classes: number of outputs.

    Raises:
        StudyError: there is no such start, or the network is no chain of layers and has none of that name.
    """
    name = of.method.start or of.start
    if name not in STARTS:
        raise StudyError(f"no start is called {name!r}; there are {', '.join(STARTS)}")
    if name in _CHAINS_ALONE and of.experiment not in _CHAINS:
        raise StudyError(f"the start {name!r} is for chains of layers ({', '.join(_CHAINS)}), not for {of.experiment}")
    shape = tuple(example.shape[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(of.seed)
        plain = make_network(of, shape, classes, "none")
        STARTS[name](plain, lambda: plan_of(plain, of, "none", example), torch.Generator().manual_seed(of.seed))
        if of.method.norm == "none":
            return plain
        network = make_network(of, shape, classes, of.method.norm)
    for layer, source in zip(layers_of(network), layers_of(plain), strict=True):
        layer.load_state_dict(source.state_dict())
    return network

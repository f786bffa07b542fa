"""Linear layers and convolutions of a model, with the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["LayerNames", "is_layer"]


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution, which reads its input by its weight."""
    return isinstance(module, (nn.Linear, _ConvNd))


class LayerNames:
    """Tells by which name the read of a weight goes: that of the layer, or that of a parameter which a function multiplies.

    Args:
        model: the module.
        aliases: every further name of a parameter -> its first name.
    """

    def __init__(self, model: nn.Module, aliases: Mapping[str, str]) -> None:
        self._weights: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            if is_layer(module):
                name = f"{path}.weight" if path else "weight"
                self._weights[path] = name if is_parametrized(module, "weight") else aliases.get(name, name)
                self._paths.setdefault(self._weights[path], path)

    def calls(self, running: str, parameter: str) -> bool:
        """Whether a module that runs is a layer whose weight this parameter is, so that its own input is what is read."""
        return self._weights.get(running) == _plain(parameter)

    def of(self, parameter: str) -> str:
        """Returns the path of the layer that a parameter is the weight of; of no layer's, the parameter's own name."""
        name = _plain(parameter)
        owner = name.rpartition(".")[0]
        return owner if self._weights.get(owner) == name else self._paths.get(name, parameter)


def _plain(parameter: str) -> str:
    """Returns the name that a parameter has without its parametrization."""
    owner, inside, rest = parameter.partition(".parametrizations.")
    return f"{owner}.{rest.partition('.')[0]}" if inside else parameter

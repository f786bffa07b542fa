"""The places where activations are observed: sites that lie along one axis, and inputs of layers that have none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from ..analysis.analysis import Analysis
from ..symmetry.symmetry import Site, Symmetry
from ..trace.layers import is_layer

__all__ = [
    "Boundary",
    "Place",
    "Terms",
    "channel_axis",
    "floating_tensors",
    "layers_of",
    "owners_of",
    "places_of",
    "weighted_layers",
]

Boundary = tuple[str, str, int]
"""(module, "input" or "output", call), or (parameter, "operand", which read of it)."""

Terms = tuple[tuple[int, NDArray[np.int64]], ...]

_BY_DATA = "scales lie along several of its axes, or which of them the parameter meets depends on the data"


@dataclass(frozen=True)
class Place:
    """One activation at a boundary that moves along one axis.

    Attributes:
        axis: the axis of its channels.
        ndim: number of axes of the activation; 0: not known.
        channels: number of channels.
        terms: its exponents: (coefficient, (channels,) the variable of each channel, -1 = fixed).
        reason: why it cannot be carried along, "" where it can.
        part: of an operand, the place in the parameter of the first entry that is read.
    """

    axis: int
    ndim: int
    channels: int
    terms: Terms
    reason: str = ""
    part: int = 0

    def takes(self, tensor: Tensor) -> bool:
        """Whether a tensor has this place's axes and channels."""
        ndim = self.ndim or tensor.ndim
        return tensor.ndim == ndim > self.axis and tensor.shape[self.axis] == self.channels


def places_of(analysis: Analysis) -> dict[Boundary, list[Place]]:
    """Returns, by boundary, the activations there that carry a variable; of operands all."""
    found: dict[Boundary, dict[int, list[Site]]] = {}
    for site in analysis.symmetry.sites:
        if site.direction == "operand" or (site.variables >= 0).any():
            found.setdefault((site.module, site.direction, site.call), {}).setdefault(site.tensor, []).append(site)
    return {boundary: [_place(sites) for sites in tensors.values()] for boundary, tensors in found.items()}


def _place(sites: Sequence[Site]) -> Place:
    """Returns the place of one activation; a term that is one variable everywhere lies along any axis."""
    spread = [site for site in sites if site.variables.size > 1 and (site.variables != site.variables[0]).any()]
    first = (spread or sites)[0]
    size = first.variables.size
    reason, moves = "", any((site.variables >= 0).any() for site in sites)
    if not all(site.whole for site in sites) or any(site.axis != first.axis for site in spread):
        reason = "scales lie along several of its axes, so that no channel moves by one factor" if moves else _BY_DATA
    terms = tuple(
        (site.coefficient, site.variables if site.axis == first.axis else np.full(size, site.variables[0], dtype=np.int64))
        for site in sites
    )
    return Place(first.axis, first.ndim, size, terms if moves and not reason else (), reason, first.part)


def layers_of(analysis: Analysis, model: nn.Module) -> dict[str, list[tuple[int, ...]]]:
    """Returns, by path of a layer that reads activations, the shapes of its weights, tied ones and those that stay included."""
    symmetry, modules = analysis.symmetry, dict(model.named_modules())
    found: dict[str, list[tuple[int, ...]]] = {}
    # A module under two names has its own name alone; two modules that share a weight are two layers.
    tied = {alias: name for alias, name in symmetry.aliases.items() if _owner(alias) in modules}
    for alias, name in ({name: name for name in symmetry.roles} | tied).items():
        reads = not isinstance(modules.get(_owner(alias)), (nn.Embedding, nn.EmbeddingBag))
        if reads and symmetry.roles.get(name) in ("weight", "gamma"):
            found.setdefault(_owner(alias), []).append(tuple(symmetry.shapes[name]))
    return found


def weighted_layers(model: nn.Module, symmetry: Symmetry) -> dict[str, tuple[str, tuple[int, int, int]]]:
    """Returns, by path of a linear layer or a convolution, its weight's name and the layout of it, as in `ObservedWeight`.

    A weight that is computed, as by weight_norm, is no parameter, and a weight that two layers share is theirs both.
    """
    found = {}
    for path, module in model.named_modules():
        if is_layer(module):
            given = f"{path}.weight" if path else "weight"
            name = symmetry.aliases.get(given, given)
            layout = (1, 0, int(module.groups)) if isinstance(module, _ConvTransposeNd) else (0, 1, 1)
            if name in symmetry.shapes:
                found[path] = name, layout
    return found


def owners_of(parameter: str, symmetry: Symmetry) -> set[str]:
    """Returns the paths of the layers that a parameter belongs to, under all its names."""
    names = [parameter, *(alias for alias, name in symmetry.aliases.items() if name == parameter)]
    return set(map(_owner, names))


def _owner(name: str) -> str:
    """Returns the path of the layer that a parameter belongs to, through a parametrization."""
    return name.rpartition(".")[0].partition(".parametrizations.")[0]


def channel_axis(module: nn.Module, tensor: Tensor, shapes: Iterable[Sequence[int]]) -> int | None:
    """Returns the axis of the channels that a layer reads; None: its weights tell none."""
    if isinstance(module, (_ConvNd, _ConvTransposeNd)):
        return tensor.ndim - module.weight.ndim + 1
    if isinstance(module, (_NormBase, nn.GroupNorm)):
        return 1 if tensor.ndim > 1 else None
    return tensor.ndim - 1 if any(tensor.shape[-1] in shape for shape in shapes) else None


def floating_tensors(values: Any) -> list[Tensor]:
    """Returns the floating-point tensors with axes in a structure, each once."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim]
    return list({id(tensor): tensor for tensor in tensors if tensor.layout is torch.strided}.values())

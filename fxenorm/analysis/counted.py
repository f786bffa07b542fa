"""The counted tensors, of which the norm is taken: their exponents and layer weights, as the executors' program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import OptionError
from ..kernels.program import ReduceProgram, as_float, build_program
from ..kernels.terms import normalise, split_repeats
from ..symmetry.symmetry import NormFold, Symmetry, Term
from .attained.basis import Basis
from .folded.factors import FoldBatch, RepeatedFactors
from .groups import layer_of
from .options import Options

__all__ = ["CountedTensor", "CountedTensors", "count_tensors"]


@dataclass(frozen=True)
class CountedTensor:
    """One counted tensor: a parameter as it is, or a layer's weight or bias with a BatchNorm folded in.

    Attributes:
        parameter: the parameter's name; for a folded bias that the layer lacks, the norm's beta or gamma.
        layer: its layer.
        shape: the tensor's shape.
        terms: the exponents of the counted tensor.
        log_weight: log ω; 0 where p is infinite.
        fold: the BatchNorm that is folded in, or None.
        channels: for a folded weight, its output channel by entry, broadcastable to `shape`; None for a folded bias.
        offset: the number that the model adds to the parameter: the norm is that of offset + w.
    """

    parameter: str
    layer: str
    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    log_weight: float
    fold: NormFold | None = None
    channels: Tensor | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class CountedTensors:
    """The tensors whose norm a plan lowers, and the program by which executors read it.

    Attributes:
        tensors: the counted tensors.
        program: the same for the executors.
    """

    tensors: tuple[CountedTensor, ...]
    program: ReduceProgram

    @property
    def layers(self) -> tuple[str, ...]:
        """The counted layers, each once, in registration order."""
        return tuple(dict.fromkeys(item.layer for item in self.tensors))

    @cached_property
    def folded_names(self) -> frozenset[str]:
        """The names of all tensors that folding BatchNorms reads."""
        return frozenset(name for item in self.tensors if item.fold for name in _names_of(item.fold))

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """The names of the running statistics among them, in order."""
        folds = [item.fold for item in self.tensors if item.fold]
        return tuple(dict.fromkeys(name for fold in folds for name in (fold.variance, fold.mean)))

    @cached_property
    def folds(self) -> bool:
        """Whether anything counted is folded: its factors change from call to call."""
        return any(item.fold is not None for item in self.tensors)

    @cached_property
    def folds_biases(self) -> bool:
        """Whether a folded bias is counted: a new tensor at each call."""
        return any(item.fold is not None and item.channels is None for item in self.tensors)

    def gather(self, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Returns the counted tensors and the factors by which they are multiplied before their norm is taken.

        Args:
            tensors: the model's parameters and buffers by name.

        Returns:
            One tensor, viewed in the shape of its block, and one factor (None: 1) for each item of `counted`.
        """
        values, factors = self.gather_whole(tensors)
        viewed = [_viewed(value, block.shape) for value, block in zip(values, self.program.blocks, strict=True)]
        return viewed, self._split(factors)

    @torch.no_grad()
    def repeated_factors(self, tensors: Mapping[str, Tensor]) -> RepeatedFactors:
        """Returns the factors of `gather` alone, to be worked out at each step from tensors of these names and devices."""
        batches = [(positions, batch, batch.values(tensors)) for positions, batch in self._fold_batches(tensors)]
        found = self._by_position([(positions, batch.by_weight(values)) for positions, batch, values in batches])
        return RepeatedFactors([(batch, values) for _, batch, values in batches], self._split(found))

    def _split(self, factors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Returns factors with their axes split as those of the blocks."""
        members = zip(factors, self.tensors, self.program.blocks, strict=True)
        return [None if factor is None else _split_like(factor, item.shape, block.shape) for factor, item, block in members]

    def gather_whole(self, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """Returns the same as `gather`, but with every tensor in its own shape."""
        values: list[Tensor] = []
        with torch.no_grad():
            for item in self.tensors:
                if item.fold is not None and item.channels is None:
                    values.append(_folded_bias(item.fold, _fold_factor(item.fold, tensors), tensors))
                else:
                    values.append(tensors[item.parameter])
        return values, self._factors_whole(tensors)

    @torch.no_grad()
    def _factors_whole(self, tensors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """Returns by counted tensor the factor of a folded weight, which broadcasts to its shape; None: there is none."""
        batches = self._fold_batches(tensors)
        return self._by_position([(positions, batch.by_weight(batch.values(tensors))) for positions, batch in batches])

    def _by_position(self, parts: Sequence[tuple[Sequence[int], Sequence[Tensor]]]) -> list[Tensor | None]:
        """Returns factors at the positions of their tensors."""
        found: list[Tensor | None] = [None] * len(self.tensors)
        for positions, factors in parts:
            for position, factor in zip(positions, factors, strict=True):
                found[position] = factor
        return found

    def _fold_batches(self, tensors: Mapping[str, Tensor]) -> list[tuple[tuple[int, ...], FoldBatch]]:
        """Returns by device the positions of the folded weights, and what their factors are made with; made once."""
        by_device: dict[torch.device, list[int]] = {}
        for position, item in enumerate(self.tensors):
            if item.fold is not None and item.channels is not None:
                by_device.setdefault(tensors[item.fold.variance].device, []).append(position)
        for device, positions in by_device.items():
            items = [self.tensors[position] for position in positions]
            folds = [item.fold for item in items if item.fold is not None]
            channels = [item.channels for item in items if item.channels is not None]
            self._batches.setdefault((tuple(positions), device), FoldBatch(folds, channels, device))
        return [(tuple(positions), self._batches[tuple(positions), device]) for device, positions in by_device.items()]

    def in_basis(self, basis: Basis, num_scales: int, p: float) -> CountedTensors:
        """Returns the same over the places of a basis, without tensors that do not move."""
        return self.renamed(basis.terms, num_scales, p)

    def renamed(self, rename: Callable[[Sequence[Term]], tuple[Term, ...]], num_scales: int, p: float) -> CountedTensors:
        """Returns the same over other variables, without tensors that do not move; `rename` gives the terms in these, or none."""
        renamed = ((item, rename(item.terms)) for item in self.tensors)
        return _assembled([replace(item, terms=terms) for item, terms in renamed if terms], num_scales, p)

    def without(self, left_out: Sequence[CountedTensor], num_scales: int, p: float) -> CountedTensors:
        """Returns the same without some of the tensors."""
        return _assembled([item for item in self.tensors if not any(item is other for other in left_out)], num_scales, p)

    @cached_property
    def _batches(self) -> dict[tuple[tuple[int, ...], torch.device], FoldBatch]:
        """By positions and device, what the factors of folded weights are made with."""
        return {}


def count_tensors(symmetry: Symmetry, options: Options, depths: Mapping[str, int]) -> CountedTensors:
    """Finds the counted tensors of a symmetry under the options.

    Counted are parameters that multiply and carry a variable; biases with ``biases="count"`` only. With
    ``batchnorm="folded"`` a BatchNorm that can be folded is not counted itself but in the layer in front of it.

    Args:
        symmetry: the free variables and the parameters' exponents.
        options: p, c, batchnorm and biases are used.
        depths: by layer, its depth in the pair graph.

    Returns:
        The counted tensors, each with its layer weight.

    Raises:
        OptionError: the dict `c` names a layer that is not counted.
    """
    items = [*_plain(symmetry, options), *_folded(symmetry, options)]
    order = {name: position for position, name in enumerate(symmetry.shapes)}
    items.sort(key=lambda item: order.get(item.parameter, len(order)))
    _check_layer_weights(options.c, items)
    return _assembled([_weighted(item, options, depths) for item in items], symmetry.num_scales, options.p)


def _assembled(counted: Sequence[CountedTensor], num_scales: int, p: float) -> CountedTensors:
    """Builds the program of some counted tensors, and puts the two together."""
    blocks = [(*split_repeats(item.shape, item.terms), item.log_weight) for item in counted]
    program = build_program(blocks, num_scales, p, [item.offset for item in counted])
    return CountedTensors(tuple(counted), program)


def _folds(symmetry: Symmetry, options: Options) -> tuple[NormFold, ...]:
    """Returns the BatchNorms that are folded; a layer in front of two of them cannot be."""
    if options.batchnorm != "folded":
        return ()
    uses = Counter(fold.weight for fold in symmetry.folds) + Counter(fold.gamma for fold in symmetry.folds if fold.gamma)
    return tuple(fold for fold in symmetry.folds if uses[fold.weight] == 1 and (fold.gamma is None or uses[fold.gamma] == 1))


def _viewed(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a tensor viewed in a shape in which some axes are split."""
    with torch.no_grad():
        return tensor if tensor.shape == shape else tensor.view(shape)


def _split_like(factor: Tensor, shape: tuple[int, ...], finer: tuple[int, ...]) -> Tensor:
    """Returns a factor that broadcasts to `shape` with its axes split as in `finer`."""
    sizes: list[int] = []
    left = list(finer)
    for own, size in zip(factor.shape, shape, strict=True):
        parts = [left.pop(0)]
        while math.prod(parts) < size:
            parts.append(left.pop(0))
        sizes += parts if own > 1 else [1] * len(parts)
    return factor.reshape(sizes)


def _plain(symmetry: Symmetry, options: Options) -> list[CountedTensor]:
    """Returns the parameters that are counted as they are."""
    folded: set[str | None] = set()
    for fold in _folds(symmetry, options):
        folded |= {fold.weight, fold.gamma, fold.bias, fold.beta}
    roles = ("weight", "gamma", "bias") if options.biases == "count" else ("weight", "gamma")
    return [
        CountedTensor(
            name, layer_of(name), tuple(symmetry.shapes[name]), tuple(terms), 0.0, offset=symmetry.offsets.get(name, 0.0)
        )
        for name, terms in symmetry.exponents.items()
        if symmetry.roles.get(name) in roles
        and name not in folded
        and name not in symmetry.buffers
        and normalise(terms, len(symmetry.shapes[name]))  # terms may cancel
    ]


def _folded(symmetry: Symmetry, options: Options) -> list[CountedTensor]:
    """Returns the weights, and with ``biases="count"`` the biases, that folding would give."""
    items = []
    for fold in _folds(symmetry, options):
        shape = tuple(symmetry.shapes[fold.weight])
        channels = _output_channels(fold, shape)
        scale = tuple(symmetry.exponents.get(fold.gamma, ())) if fold.gamma else ()
        on_output = tuple((coefficient, _per_channel(ids, channels)) for coefficient, ids in scale)
        terms = (*symmetry.exponents.get(fold.weight, ()), *on_output)
        if normalise(terms, len(shape)):
            items.append(CountedTensor(fold.weight, layer_of(fold.weight), shape, terms, 0.0, fold, torch.from_numpy(channels)))
        if options.biases != "count":
            continue
        added = tuple(symmetry.exponents.get(fold.beta, ())) if fold.beta else ()
        if not fold.beta:
            # Without beta the folded bias is (bias - mean) * gamma / deviation.
            added = (*symmetry.exponents.get(fold.mean, ()), *scale)
        if added:
            name = fold.beta or fold.bias or fold.gamma or fold.weight
            size = int(channels.max()) + 1
            items.append(CountedTensor(name, layer_of(fold.weight), (size,), added, 0.0, fold))
    return items


def _output_channels(fold: NormFold, shape: Sequence[int]) -> NDArray[np.int64]:
    """Returns the output channel of each entry of a layer's weight, broadcastable to the weight."""
    ones = [1] * len(shape)
    if fold.transposed and fold.groups > 1:
        block = np.arange(shape[0]) // (shape[0] // fold.groups)
        channels = block[:, None] * shape[1] + np.arange(shape[1])[None, :]
        return channels.reshape([shape[0], shape[1], *ones[2:]])
    ones[fold.output_axis] = shape[fold.output_axis]
    return np.arange(shape[fold.output_axis]).reshape(ones)


def _per_channel(ids: NDArray[np.int64], channels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns a norm's ids, laid out on the weight's output channels."""
    flat = np.broadcast_to(ids.reshape(-1), (int(channels.max()) + 1,))
    return flat[channels]


def _fold_factor(fold: NormFold, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns (channels,) gamma / sqrt(running variance + eps), signed."""
    variance = tensors[fold.variance]
    factor = (as_float(variance, variance.device) + fold.eps).rsqrt()
    return factor * tensors[fold.gamma] if fold.gamma else factor


def _folded_bias(fold: NormFold, factor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns (channels,) (bias - mean) * factor + beta, the bias that folding would give."""
    mean = as_float(tensors[fold.mean], factor.device)
    shifted = (tensors[fold.bias] - mean if fold.bias else -mean) * factor
    return shifted + tensors[fold.beta] if fold.beta else shifted


def _names_of(fold: NormFold) -> list[str]:
    """Returns the names of all tensors that folding a BatchNorm reads."""
    names = (fold.weight, fold.bias, fold.gamma, fold.beta, fold.mean, fold.variance)
    return [name for name in names if name is not None]


def _check_layer_weights(c: float | str | Mapping[str, float], items: Sequence[CountedTensor]) -> None:
    """Raises where a dict names layers that are not there."""
    if not isinstance(c, Mapping):
        return
    layers = sorted({item.layer for item in items})
    unknown = sorted(set(c) - set(layers))
    if unknown:
        shown = ", ".join(layers[:20]) + (", ..." if len(layers) > 20 else "")
        raise OptionError(f"c names layers that are not counted: {', '.join(unknown)}; the counted layers are: {shown}")


def _weighted(item: CountedTensor, options: Options, depths: Mapping[str, int]) -> CountedTensor:
    """Returns the item with its layer weight."""
    c = options.c
    if math.isinf(options.p):
        log_weight = 0.0
    elif isinstance(c, Mapping):
        log_weight = math.log(c.get(item.layer, 1.0))
    elif isinstance(c, str):
        log_weight = -math.log(max(1, math.prod(item.shape)))
    else:
        log_weight = -options.p * depths.get(item.layer, 0) * math.log(c)
    return replace(item, log_weight=log_weight)

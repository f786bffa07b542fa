"""Inputs made up for a forward of several arguments: each from its name, its annotation and the layers that it reaches."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .layer_shapes import shapes_for_layer, width_of
from .reached_layers import Reached, reached

__all__ = ["Maker", "combinations", "role_of", "takes_a_tensor"]

BATCH, NODES, EDGES, GRAPHS = 2, 6, 12, 2
"""Sizes of a small batch and of a small graph, all different where a model could mix them up: every node has two edges on
average."""

_SIDES, _LENGTHS = (224, 64, 32), (16, 8)
"""Sides of images (ImageNet's, small generators', CIFAR's) and lengths of sequences, the likeliest first."""

_MOST_A_SETTING, _MOST_EACH = 24, 6
"""Calls that are tried with one side and one length, and values of one argument: their product grows with the arguments, and
each call costs a run with fake values; those that take likely values for all arguments come first."""

_ROLES = {
    "edges": r"edge_?(index|indices|list)|edges?|adj_t|bonds?_?index|hyperedge_index",
    "adjacency": r"adj|adjacency(_matrix)?|a_?hat|laplacian|graph|support",
    "ends": r"src|dst|source_?(nodes|index)|target_?(nodes|index)|senders|receivers|row|col|index_[ij]|idx_[ij]",
    "edge_weight": r"edge_?(weight|norm)s?",
    "edge_features": r"(edge|bond)_?(attr|attrs|feat|feats|features|attributes)|edge_?type",
    "graph_of_node": r"batch|batch_?(index|idx|vec)|graph_?(ids?|index)|segment_?ids?",
    "positions": r"pos|positions|coords|coordinates|xyz",
    "time": r"t|ts|time|times|timestep|timesteps|time_?steps?|sigma|sigmas|noise_?(level|levels|cond)|diffusion_step",
    "length": r"lengths?|lens|seq_?lens?|sizes?|\w+_lengths?|\w+_lens",
    "mask": r"\w*mask\w*",
    "tokens": r"ids|tokens?|\w*input_?ids|\w*token_?ids?|\w*type_ids|words?|texts?|captions?|prompt|question|sentence|src|tgt",
    "label": r"y|labels?|class_?(labels?|ids?|idx)|classes|users?|items?|\w+_ids?",
}  # fmt: skip
"""By role, the names that an argument of it has; the first that fits counts."""


@dataclass(frozen=True)
class Maker:
    """Makes tensors on a device in a dtype; without values on the meta device."""

    device: torch.device
    dtype: torch.dtype

    def floats(self, *shape: int, value: float | None = None) -> torch.Tensor:
        """Returns numbers between 0 and 1, or one number everywhere."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        if value is not None:
            return torch.full(shape, value, dtype=self.dtype, device=self.device)
        generator = torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(self.device, self.dtype)

    def integers(self, *shape: int, below: int, stride: int = 1) -> torch.Tensor:
        """Returns 0, stride, 2 stride and so on, below a bound."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=torch.int64, device=self.device)
        numbers = torch.arange(math.prod(shape), dtype=torch.int64, device=self.device) * stride
        return (numbers % max(1, below)).reshape(shape)

    def same(self, *shape: int, value: int | bool) -> torch.Tensor:
        """Returns a tensor of one integer or truth value everywhere."""
        dtype = torch.bool if isinstance(value, bool) else torch.int64
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def edges(self) -> torch.Tensor:
        """(2, EDGES) numbers of nodes; every node has an edge that comes in."""
        return torch.stack([self.integers(EDGES, below=NODES), self.integers(EDGES, below=NODES, stride=5)])

    def graphs(self) -> torch.Tensor:
        """(NODES,) the number of each node's graph, ascending."""
        if self.device.type == "meta":
            return torch.empty(NODES, dtype=torch.int64, device=self.device)
        return torch.arange(NODES, dtype=torch.int64, device=self.device) * GRAPHS // NODES


@dataclass(frozen=True)
class _Setting:
    """The sizes and widths that all arguments of one call share."""

    side: int
    length: int
    graph: bool
    vocabulary: int
    features: int


def role_of(name: str) -> str:
    """Returns the role of an argument, by its name; "" where the name does not tell."""
    plain = name.lower().strip("_")
    return next((role for role, pattern in _ROLES.items() if re.fullmatch(pattern, plain)), "")


def takes_a_tensor(parameter: inspect.Parameter) -> bool:
    """Whether an argument that may be left out can be a tensor, as far as its default and its annotation tell.

    Embeddings stand for other arguments, which are given.
    """
    annotation = parameter.annotation
    tensor = annotation is inspect.Parameter.empty or "Tensor" in str(annotation)
    return tensor and parameter.default is None and not parameter.name.endswith("_embeds")


def combinations(model: nn.Module, parameters: Sequence[inspect.Parameter], maker: Maker, vocabulary: int) -> Iterator[list[Any]]:
    """Values for the parameters of forward, in their order, the likeliest first.

    Args:
        model: the module.
        parameters: of forward.
        maker: of tensors.
        vocabulary: a bound on indices into embeddings that are not known.
    """
    seen = {parameter.name: reached(model, parameter.name) for parameter in parameters}
    roles = {parameter.name: _role(parameter, seen[parameter.name]) for parameter in parameters}
    graph = any(role in ("edges", "adjacency", "ends") for role in roles.values())
    sides: tuple[int, ...] = _SIDES[1:] if "time" in roles.values() else _SIDES
    named = _named_side(model)
    sides = sides if named is None else (named,)
    if not any(_takes_images(layer) for found in seen.values() for layer in found.layers):
        sides = sides[:1]
    lengths = _LENGTHS[: 1 if graph else None]
    for side, length in itertools.product(sides, lengths):
        setting = _Setting(side, length, graph, vocabulary, _features(model))
        choices = [
            list(itertools.islice(_values(parameter, roles[parameter.name], seen[parameter.name], setting, maker), _MOST_EACH))
            for parameter in parameters
        ]
        if not all(choices):
            return
        ranked = sorted(itertools.product(*(range(len(choice)) for choice in choices)), key=lambda ranks: (sum(ranks), ranks))
        for ranks in ranked[:_MOST_A_SETTING]:
            yield [choice[rank] for choice, rank in zip(choices, ranks, strict=True)]


def _named_side(model: nn.Module) -> int | None:
    """Returns the side of the pictures, where a part of the model holds it under its usual name."""
    for module in model.modules():
        for name in ("image_size", "img_size"):
            value = vars(module).get(name)
            side = value[0] if isinstance(value, (tuple, list)) and value else value
            if isinstance(side, int) and not isinstance(side, bool):
                return side
    return None


def _features(model: nn.Module) -> int:
    """Returns the width of the vectors that the model, or the first part of it that tells, takes; 0 where none does."""
    return next((width for width in map(width_of, model.modules()) if width), 0)


def _takes_images(layer: nn.Module) -> bool:
    """Whether the sides of a picture can matter to a layer."""
    return isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm))


def _role(parameter: inspect.Parameter, found: Reached) -> str:
    """Returns the role by name, unless forward uses the argument in a way that speaks against it."""
    role = role_of(parameter.name)
    kinds = {type(layer) for layer in found.layers}
    vectors = bool(kinds) and not kinds & {nn.Embedding, nn.EmbeddingBag}
    if role in ("tokens", "label", "ends", "adjacency", "positions", "length", "graph_of_node") and vectors and not found.indexes:
        return ""  # features, whatever they are called
    if role in ("ends", "tokens") and found.layers:
        return "tokens"
    if not role and found.indexes and not found.layers:
        return "edges" if found.pairs else "ends"
    return role


def _values(parameter: inspect.Parameter, role: str, found: Reached, setting: _Setting, maker: Maker) -> Iterator[Any]:
    """Yields values of one argument, the likeliest first."""
    plain = {"int": 2, "float": 1.0, "bool": False, int: 2, float: 1.0, bool: False}
    if parameter.annotation in plain:
        yield plain[parameter.annotation]
        return
    known = _BY_ROLE.get(role)
    if known is not None:
        yield from known(found, setting, maker)
    elif found.layers:
        yield from _for_layers(found, setting, maker)
    else:
        yield from _unknown(setting, maker)


def _for_layers(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    """Yields tensors of the shapes that the first layers take, the likeliest first."""
    for layer in found.layers[:2]:
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            if not setting.graph:
                yield maker.integers(BATCH, setting.length, below=layer.num_embeddings)
            yield maker.integers(NODES if setting.graph else BATCH, below=layer.num_embeddings)
            continue
        shapes: list[tuple[int, ...]] = [shape for shape, _ in itertools.islice(shapes_for_layer(layer), 4)]
        for shape in shapes[:1] if _takes_images(layer) else shapes:
            if setting.graph and len(shape) == 2:
                yield maker.floats(NODES, shape[1])
            elif _takes_images(layer) and len(shape) == 4:
                yield maker.floats(*shape[:2], setting.side, setting.side)
            elif len(shape) == 3 and shape[1] == _LENGTHS[0]:
                yield maker.floats(shape[0], setting.length, shape[2])
            else:
                yield maker.floats(*shape)


def _unknown(setting: _Setting, maker: Maker) -> Iterator[Any]:
    """Yields values for an argument of which nothing is known: a number a sample or a node, or a tensor that broadcasts."""
    count = NODES if setting.graph else BATCH
    if setting.graph and setting.features:
        yield maker.floats(count, setting.features)
    yield maker.floats(count)
    yield maker.floats(count, 1)
    yield maker.floats()
    yield maker.integers(count, below=setting.vocabulary)
    yield maker.floats(count, 1, 1, 1)


def _edges(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    yield maker.edges()
    yield maker.edges().T.contiguous()


def _adjacency(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    yield maker.floats(NODES, NODES)
    yield maker.edges()
    yield maker.floats(BATCH, NODES, NODES)


def _ends(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    yield maker.integers(EDGES, below=NODES)
    yield maker.integers(EDGES, below=NODES, stride=5)


def _edge_weight(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    yield maker.floats(EDGES)
    yield maker.floats(EDGES, 1)


def _rows_for(layer: nn.Module, count: int, maker: Maker) -> Iterator[torch.Tensor]:
    """Yields as many rows, or indices, as one layer is to get; nothing where it takes no known shape."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield maker.integers(count, below=layer.num_embeddings)
    else:
        yield from (maker.floats(count, shape[-1]) for shape, _ in itertools.islice(shapes_for_layer(layer), 1))


def _edge_features(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    for layer in found.layers[:2]:
        yield from _rows_for(layer, EDGES, maker)
    yield from _edge_weight(found, setting, maker)
    yield maker.integers(EDGES, below=setting.vocabulary)


def _graph_of_node(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    yield maker.graphs()


def _positions(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    count = NODES if setting.graph else BATCH
    yield from _for_layers(found, setting, maker)
    yield from (maker.floats(count, axes) for axes in (3, 2))
    yield maker.floats(BATCH, setting.length, 3)
    yield maker.integers(BATCH, setting.length, below=setting.length)


def _time(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    for layer in found.layers[:1]:
        yield from _rows_for(layer, BATCH, maker)
    yield maker.integers(BATCH, below=1000, stride=7)
    yield maker.floats(BATCH)
    yield maker.floats(BATCH, 1)
    yield maker.floats()


def _length(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    yield maker.same(BATCH, value=setting.length)


def _mask(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    if setting.graph:
        yield maker.same(NODES, value=True)
    size, side = setting.length, setting.side
    yield maker.same(BATCH, size, value=1)
    yield maker.same(BATCH, size, value=True)
    yield maker.floats(BATCH, size, value=1.0)
    yield maker.floats(size, size, value=0.0)
    yield maker.same(BATCH, size, value=False)
    yield maker.floats(BATCH, 1, side, side, value=1.0)


def _label(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    embedding = next((layer for layer in found.layers if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))), None)
    below = setting.vocabulary if embedding is None else embedding.num_embeddings
    yield maker.integers(NODES if setting.graph else BATCH, below=below)
    yield maker.integers(BATCH, setting.length, below=below)


def _tokens(found: Reached, setting: _Setting, maker: Maker) -> Iterator[torch.Tensor]:
    yield from _for_layers(found, setting, maker)
    if not found.layers:
        yield maker.integers(BATCH, setting.length, below=setting.vocabulary)


_BY_ROLE = {
    "edges": _edges, "adjacency": _adjacency, "ends": _ends, "edge_weight": _edge_weight, "edge_features": _edge_features,
    "graph_of_node": _graph_of_node, "positions": _positions, "time": _time, "length": _length, "mask": _mask, "label": _label,
    "tokens": _tokens,
}  # fmt: skip

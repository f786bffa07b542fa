"""Shapes of tensors that a model could take, by the layer that it begins with."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

__all__ = ["TOKENS", "is_first_layer", "shapes_for_layer", "width_of"]

TOKENS = (16, 32, 8, 64, 128, 512, 1)
"""Lengths of texts, the likeliest first: short, for attention is quadratic; then the usual fixed lengths of models; then a
step."""

_CLIPS = ((16, 112, 112), (16, 224, 224), (32, 224, 224), (16, 64, 64), (32, 32, 32), (8, 32, 32), (16, 16, 16), (8, 8, 8))
"""(time, height, width) of clips and volumes: those of video models first, then cubes that survive three halvings."""

_LENGTHS = (128, 1024, 16000, 256, 64, 32, 100, 16, 3000)
"""Lengths of sequences of channels: powers of two, a second of sound at 16 kHz, Whisper's 3000 frames."""

_SIDES = (224, 299, 96, 64, 32, 256, 28, 128, 48, 16, 8, 384, 512)
"""Sides of square images: the usual input sizes of torchvision and timm, likeliest first; 8 and 16 for small nets, 28 for
MNIST."""

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_FIRST_LAYERS = (
    *_CONV, *_NORM, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention,
)  # fmt: skip


_WIDTHS = ("in_features", "input_size", "num_features", "in1_features", "in_channels")


def is_first_layer(module: nn.Module) -> bool:
    """Whether the shapes that a module takes are known: it is a layer of torch, or it multiplies vectors."""
    if isinstance(module, _FIRST_LAYERS):
        return True
    weight, width = vars(module).get("_parameters", {}).get("weight"), width_of(module)
    return weight is not None and weight.dim() == 2 and width in weight.shape


def width_of(module: nn.Module) -> int | None:
    """Returns the width of the vectors that a module takes, where an attribute tells it; None otherwise."""
    found = (vars(module).get(name) for name in _WIDTHS)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool) and value > 0), None)


def shapes_for_layer(layer: nn.Module) -> Iterator[tuple[tuple[int, ...], bool]]:
    """(shape, integer) of tensors that a model that begins with `layer` could take."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield from (((2, length), True) for length in TOKENS)
        yield (2,), True
    elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        yield from (((2, layer.in_channels, side, side), False) for side in _SIDES)
    elif isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        yield from (((2, layer.in_channels, length), False) for length in _LENGTHS)
        if layer.in_channels == 1:
            yield from (((2, length), False) for length in _LENGTHS)
    elif isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        yield from (((2, layer.in_channels, *clip), False) for clip in _CLIPS)
    elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
        channels = layer.num_features if isinstance(layer, nn.BatchNorm2d) else layer.num_channels
        yield from (((2, channels, side, side), False) for side in _SIDES)
        yield (2, channels), False
    elif isinstance(layer, nn.BatchNorm3d):
        yield from (((2, layer.num_features, *clip), False) for clip in _CLIPS)
    elif isinstance(layer, nn.LayerNorm):
        yield (2, *layer.normalized_shape), False
        yield (2, 16, *layer.normalized_shape), False
    elif isinstance(layer, nn.MultiheadAttention):
        yield (16, 2, layer.embed_dim), False
        yield (2, 16, layer.embed_dim), False
    elif isinstance(layer, nn.RNNBase):
        yield ((2, 16, layer.input_size) if layer.batch_first else (16, 2, layer.input_size)), False
    else:
        yield from _for_vectors(layer)


def _for_vectors(layer: nn.Module) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Shapes for a layer that takes vectors: the vectors, sequences of them, and images that flatten to them."""
    features = width_of(layer) or 1
    yield (2, features), False
    yield (2, 16, features), False
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if features == channels * side * side:
            yield (2, channels, side, side), False
    yield (2, 8, 8, features), False
    yield (features,), False

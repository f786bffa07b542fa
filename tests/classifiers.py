"""torchvision's classification models at sizes on which all of them run quickly, in both modes."""

from __future__ import annotations

import fnmatch
import inspect
from typing import Any

import torch
from torch import nn

from .helpers import randomise

IMAGE_SIZES = {
    "inception_v3": (299, 299),  # the least at which the auxiliary head has its 5 x 5 pixels
    "maxvit_*": (224, 224),  # windows of 7 x 7 at every stage
    "vit_h_14": (28, 28),
    "vit_*_16": (32, 32),
    "vit_*_32": (64, 64),
    "alexnet": (79, 64),
    "squeezenet*": (64, 79),
}
"""Height and width by name pattern, the first that fits; else `DEFAULT_SIZE`."""

DEFAULT_SIZE = (64, 75)


def names(pattern: str = "*") -> list[str]:
    """Names of the classification models that fit a shell-style pattern."""
    import torchvision

    return fnmatch.filter(torchvision.models.list_models(module=torchvision.models), pattern)


def image_size(name: str) -> tuple[int, int]:
    """Height and width for a model."""
    return next((size for pattern, size in IMAGE_SIZES.items() if fnmatch.fnmatchcase(name, pattern)), DEFAULT_SIZE)


def build(name: str) -> nn.Module:
    """The model without weights to download; vision transformers for small images (their scales do not depend on it)."""
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if name.startswith("vit_"):
        options["image_size"] = image_size(name)[0]
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the slow default warns
    assert "weights" in inspect.signature(builder).parameters
    return builder(**options)


def example(name: str, batch: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor]:
    """Seeded images for the model."""
    return (torch.randn(batch, 3, *image_size(name), dtype=dtype, generator=torch.Generator().manual_seed(0)),)


@torch.no_grad()
def redraw(name: str, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Random weights and statistics. Dozens of gates in a row amplify a rounding error of 1e-15 to 1e-7 unless they are calm."""
    randomise(model, inputs, seed=1)
    if name.startswith("efficientnet"):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.5)
                module.bias.mul_(0.5)

"""timm models at their smallest: one of each module, with the smallest inputs that they take."""

from __future__ import annotations

import torch
from torch import nn

SMALL = 3e7
"""Models with more parameters than this stand for their module only where no other does."""

_MARKS = ("test_", "tiny", "nano", "pico", "atto", "small", "_xs", "_s", "18", "b0", "_t_", "femto", "_xxs")


def one_of_each_module() -> dict[str, str]:
    """By timm module, the name of a model that is small by its name."""
    import timm

    modules: dict[str, list[str]] = {}
    for name in timm.list_models():
        modules.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    return {
        module: min(names, key=lambda name: (not any(mark in name for mark in _MARKS), len(name), name))
        for module, names in modules.items()
    }


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The model with random weights (in float32) and one batch of four images (in float64)."""
    import timm

    random = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = timm.create_model(name)
    finally:
        torch.random.set_rng_state(random)
    channels, height, width = model.default_cfg.get("input_size", (3, 224, 224))
    side = min(height, width)
    # Convolutional networks take any size; attention and token mixing mostly one.
    if not model.default_cfg.get("fixed_input_size", False):
        side = next((size for size in (64, 96, 128, side) if size <= side and _runs(model, channels, size)), side)
    # Of four: a BatchNorm over two values amplifies rounding without bound.
    images = torch.randn(4, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, (images,)


def _runs(model: nn.Module, channels: int, side: int) -> bool:
    """Whether the model runs in eval mode on one image of this size."""
    was = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, side, side))
    except (RuntimeError, AssertionError, ValueError):
        return False
    finally:
        model.train(was)
    return True

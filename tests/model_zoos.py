"""The model zoos of tools/coverage.py, each model with its inputs and a way to draw its weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fxenorm.symmetry import Symmetry

from . import classifiers, torchvision_models
from .helpers import randomise, randomness_off

ZOOS = ("torchvision", "timm", "transformers", "graph")

TWO_IMAGES = ("maxvit_t", "inception_v3")
"""Classifiers whose images cannot be small, so their batch is."""


@dataclass
class Loaded:
    """A float64 model without dropout, its arguments, the modes in which it runs, and what draws its weights."""

    model: nn.Module
    inputs: tuple[Any, ...]
    redraw: Callable[[], Any]
    keywords: dict[str, Any] = field(default_factory=dict)
    modes: tuple[str, ...] = ("eval", "train")
    claimed_and_true: Callable[[Symmetry], tuple[int, int]] | None = None
    """From what was found, its dimension and that of the true group, where that is small enough to be measured."""

    @property
    def example(self) -> Any:
        """What `fxenorm.analyze` takes."""
        return self.keywords or self.inputs


def names(zoo: str, pattern: str = "*") -> list[str]:
    """The zoo's models that fit a shell-style pattern; of timm one small model of each module (all that fit, with a pattern)."""
    if zoo == "torchvision":
        import torchvision

        every = torchvision.models.list_models()
    elif zoo == "timm":
        import timm

        from .timm_models import one_of_each_module

        every = sorted(one_of_each_module().values()) if pattern == "*" else timm.list_models()
    elif zoo == "graph":
        from . import graph_models

        every = list(graph_models.MODELS)
    else:
        from .transformer_models import MODELS

        every = list(MODELS)
    return fnmatch.filter(every, pattern)


def load(zoo: str, name: str) -> Loaded:
    """One model of a zoo."""
    if zoo == "transformers":
        from . import transformer_models

        model, keywords = transformer_models.build(name)
        keywords = {key: value.double() if value.is_floating_point() else value for key, value in keywords.items()}
        return Loaded(model.double().eval(), (), lambda: transformer_models.redraw(model), keywords)
    if zoo == "graph":
        from . import graph_models

        model, inputs = randomness_off(graph_models.build(name).double()), graph_models.inputs()
        measured = None if name in graph_models.JUMPS else lambda found: graph_models.claimed_and_true(name, found)
        return Loaded(model, inputs, lambda: randomise(model, inputs, seed=1), claimed_and_true=measured)
    if zoo == "timm":
        from . import timm_models

        model, inputs = timm_models.build(name)
        randomness_off(model).double().eval()
        return Loaded(model, inputs, lambda: randomise(model, inputs, seed=1))
    if torchvision_models.task(name):
        model, inputs = torchvision_models.build(name), torchvision_models.example(name)
        randomness_off(model).double().eval()
        return Loaded(model, inputs, lambda: torchvision_models.redraw(name, model, inputs), modes=torchvision_models.modes(name))
    model = randomness_off(classifiers.build(name).double())
    inputs = classifiers.example(name, batch=2 if name in TWO_IMAGES else 4)
    return Loaded(model, inputs, lambda: classifiers.redraw(name, model, inputs))

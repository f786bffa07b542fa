"""Plans of networks: those of one structure share an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

import fxenorm

from .configuration import Configuration
from .methods.method import Method

KEPT = 8
"""Analyses that are kept; each holds the network that it was made of."""


@dataclass(frozen=True)
class _Network:
    """A network and all that decides its structure; two of the same structure are equal."""

    of: Configuration
    shape: tuple[int, ...]
    c: float | str
    options: tuple[tuple[str, Any], ...]
    device: str
    model: nn.Module = field(compare=False, repr=False)
    example: Tensor = field(compare=False, repr=False)


@lru_cache(maxsize=KEPT)
def _analysed(network: _Network) -> fxenorm.Plan:
    """The plan of the first network of a structure."""
    return fxenorm.analyze(network.model, network.example, c=network.c, **dict(network.options))  # type: ignore[arg-type]


def plan_of(
    model: nn.Module,
    of: Configuration,
    norm: str,
    example: Tensor,
    c: float | str = 1.0,
    options: Sequence[tuple[str, Any]] = (),
) -> fxenorm.Plan:
    """The plan of a network.

    Args:
        model: the network, or a stack.
        of: its configuration, or that of one of its runs.
        norm: what stands between its layers, which may be another than the method's.
        example: inputs on which the model runs.
        c: as `fxenorm.analyze` takes it.
        options: its other options.
    """
    same = of.but(method=Method("any", norm=norm), rate=0.0, seed=0, purpose="", batch=0, steps=None, epochs=0, start="", data="")
    same = same.but(momentum=0.0, weight_decay=0.0, decay_on="", decoupled=False, schedule="")
    network = _Network(same, tuple(example.shape), c, tuple(options), f"{example.device} {example.dtype}", model, example)
    return _analysed(network).bind(model)

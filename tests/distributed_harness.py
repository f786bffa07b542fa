"""The table of checks that `distributed_worker` runs, and what they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import fxenorm
from fxenorm.errors import FxenormError
from tests.distributed_models import (
    Transformer,
    batch,
    build,
)
from tests.releases import TRAINS_ON_CPUS

Check = Callable[[Path], dict[str, Any]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Decorator: one of the checks."""
    CHECKS[function.__name__] = function
    return function


def shard(module: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """A module under fully_shard, in a way in which this release trains it on CPUs."""
    return fully_shard(module, mesh=mesh, **TRAINS_ON_CPUS)


def sharded(kind: type[nn.Module], *args: Any, mesh: DeviceMesh | None = None) -> nn.Module:
    """The model of `build`, its children and itself under fully_shard."""
    model = build(kind, *args)
    children = [child for child in model.children() if next(child.parameters(), None) is not None and kind is not Transformer]
    for child in children:
        shard(child, mesh)
    return shard(model, mesh)


def optimizer_for(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW."""
    if name == "SGD":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)


PLANS: dict[Any, fxenorm.Plan] = {}


def plan_for(model: nn.Module, kind: type[nn.Module], *args: Any, **options: Any) -> fxenorm.Plan:
    """A plan on the model, from one analysis of an ordinary one: the options tried here do not change what is found."""
    key = (kind, *args)
    if key not in PLANS:
        PLANS[key] = fxenorm.analyze(build(kind, *args), batch(kind))
    known = PLANS[key]
    return fxenorm.Plan(known.symmetry, dataclasses.replace(known.options, **options), model)


def refusal(call: Callable[[], Any]) -> str:
    """The type and text of the error that a call raises; empty for none."""
    try:
        call()
    except FxenormError as error:
        return f"{type(error).__name__}: {error}"
    return ""

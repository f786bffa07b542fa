"""A run that is saved and resumed in the middle equals the uninterrupted one bit for bit, whatever the optimizer."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fxenorm
from fxenorm.optim.registry import registered
from fxenorm.rescale.attach import Attachment

from ..helpers import generator

INPUTS = torch.randn(8, 4, generator=generator(1))
STEPS, HALT = 16, 9
TORCH = sorted((cls for cls in registered() if cls.__module__.startswith("torch.")), key=lambda cls: cls.__name__)
SETTINGS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "Adadelta": {"lr": 1.0}, "RMSprop": {"centered": True}}


def parts(cls: type[Optimizer]) -> tuple[nn.Module, Optimizer, Attachment]:
    """A network (of matrices alone for Muon), its optimizer, and the plan attached to it; always the same."""
    torch.manual_seed(0)
    bias = cls.__name__ != "Muon"
    layers = [nn.Linear(4, 6, bias=bias), nn.ReLU(), nn.Linear(6, 5, bias=bias), nn.ReLU(), nn.Linear(5, 2, bias=bias)]
    model = nn.Sequential(*layers)
    optimizer = cls(model.parameters(), **{"lr": 1e-2, **SETTINGS.get(cls.__name__, {})})  # type: ignore[call-arg]
    return model, optimizer, fxenorm.analyze(model).attach(optimizer, every=2, start=1)


def run(cls: type[Optimizer], halt: int | None = None) -> tuple[nn.Module, Optimizer, Attachment]:
    """The parts after some steps; saved and made anew after `halt` of them."""
    model, optimizer, handle = parts(cls)
    for step in range(STEPS):
        if step == halt:
            file = io.BytesIO()
            torch.save([part.state_dict() for part in (model, optimizer, handle)], file)
            file.seek(0)
            model, optimizer, handle = parts(cls)
            for part, stored in zip((model, optimizer, handle), torch.load(file), strict=True):
                part.load_state_dict(stored)
        # LBFGS diverges on a loss that changes from step to step, with and without a plan.
        target = torch.randn(8, 2, generator=generator(100 + (step if cls is not torch.optim.LBFGS else 0)))

        def closure(model: nn.Module = model, target: Tensor = target) -> Tensor:
            model.zero_grad()
            loss = (model(INPUTS) - target).square().mean()
            loss.backward()
            for parameter in model.parameters() if cls is torch.optim.SparseAdam else ():
                parameter.grad = parameter.grad.to_sparse()
            return loss

        if cls is torch.optim.LBFGS:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return model, optimizer, handle


@pytest.mark.parametrize("cls", TORCH, ids=lambda cls: cls.__name__)
def test_resumed_is_uninterrupted(cls: type[Optimizer]) -> None:
    (one, optimizer, handle), (other, resumed, again) = run(cls), run(cls, halt=HALT)
    assert handle.steps == again.steps == STEPS
    for weight, twin in zip(one.parameters(), other.parameters(), strict=True):
        assert weight.isfinite().all() and torch.equal(weight, twin)
    for state, twins in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        for key, value in state.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, twins[key]), key

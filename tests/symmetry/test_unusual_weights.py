"""Complex weights, and parameters of no axis, in every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxenorm

from ..helpers import draw_log_scales


class ByNumbers(nn.Module):
    """Single numbers between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 1), nn.Linear(1, 3)
        self.w, self.v = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b((self.v * (self.w * self.a(x)).relu()).abs())


def complex_chain(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 80, dtype=dtype), nn.Linear(80, 90, dtype=dtype), nn.Linear(90, 3, dtype=dtype))


class ConvolvesComplex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 5, 2, dtype=torch.complex64), nn.Conv1d(5, 3, 2, dtype=torch.complex64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x.unsqueeze(-1).expand(*x.shape, 6)))


MODELS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "numbers": (ByNumbers, torch.float32),
    "complex64": (lambda: complex_chain(torch.complex64), torch.complex64),
    "complex128": (lambda: complex_chain(torch.complex128), torch.complex128),
    "complex convolutions": (ConvolvesComplex, torch.complex64),
}
CALLS: dict[str, Callable[[fxenorm.Plan, torch.optim.Optimizer], object]] = {
    "step": lambda plan, optimizer: plan.step(optimizer),
    "cycles": lambda plan, optimizer: plan.step(optimizer, cycles=3),
    "balance": lambda plan, optimizer: plan.balance(optimizer),
    "rescale": lambda plan, optimizer: plan.rescale(draw_log_scales(plan), optimizer),
    "read": lambda plan, optimizer: (plan.held, plan.imbalance(), plan.layer_norms()),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.parametrize("p", [2.0, 12.0, float("inf")])
@pytest.mark.filterwarnings("error::UserWarning")
def test_every_call_keeps_the_function(name: str, call: str, backend: str, p: float) -> None:
    torch.manual_seed(0)
    make, dtype = MODELS[name]
    model, x = make(), torch.randn(5, 4, dtype=dtype)
    plan = fxenorm.analyze(model, x, backend=backend, p=p)  # type: ignore[arg-type]
    assert plan.num_scales
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(x).abs().sum().backward()
    optimizer.step()
    before, size, y = plan.norm(), sum(w.abs().pow(2).sum() for n, w in model.named_parameters() if "bias" not in n), model(x)
    if p == 2.0:
        torch.testing.assert_close(before.square(), size.double(), rtol=1e-5, atol=0)
    CALLS[call](plan, optimizer)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    assert call == "rescale" or plan.norm() <= before * (1 + 1e-6)

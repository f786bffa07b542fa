"""The check of tools/coverage.py tells a fault from rounding that a model amplifies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.rules import Rule, registry
from fxenorm.rules.laws import passes

from ..helpers import TOLERANCE, mlp, outputs
from ..measured_changes import measured_changes


class _Amplified(nn.Module):
    """Two layers, and behind them a function that turns a rounding of float64 into a change of 1e-9 and more."""

    def __init__(self, factor: float, flips: bool = False) -> None:
        super().__init__()
        self.layers = mlp(4, 6, 3, seed=0, dtype=torch.float64)
        self.factor, self.flips = factor, flips

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers[:2](x)
        return torch.sin(self.factor * self.layers[2](hidden.flip(1) if self.flips else hidden))


def _measured(model: nn.Module) -> tuple[dict[str, float], float]:
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return measured_changes(model, fxenorm.analyze(model, x), ("eval",), lambda mode: outputs(model, (x,), mode))


def test_rounding_is_told_where_it_is_amplified_and_nowhere_else() -> None:
    errors, rounding = _measured(_Amplified(1.0))
    assert errors["eval"] <= TOLERANCE and math.isnan(rounding)
    errors, rounding = _measured(_Amplified(1e8))
    assert errors["eval"] == 0 and rounding > TOLERANCE, "powers of two round nothing"


@pytest.mark.parametrize("factor", [1.0, 1e8])
def test_a_fault_is_found_with_and_without_amplified_rounding(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._RULES, "aten::flip", Rule("aten::flip", "structural", passes))
    errors, _ = _measured(_Amplified(factor, flips=True))
    assert errors["eval"] > 1e-2

"""p = inf on whole models: one answer from any start, by definition, and all that `balance` promises besides."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm

from ..helpers import TOLERANCE, load_tool, outputs, relative_difference, state_of
from ..max_balance_check import entries_of_model, on_cycles

BENCH = load_tool("bench_balance")


class Stream(nn.Module):
    """A residual stream of layers without biases, in which the largest weights are those of the branches."""

    def __init__(self, width: int = 5, depth: int = 2) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, width, bias=False), nn.Linear(width, 3, bias=False)
        self.up = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        with torch.no_grad():
            self.into.weight.mul_(1e-2)
            self.out.weight.mul_(1e-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 4) -> (B, 3)."""
        x = self.into(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.out(x)


def made(name: str, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, dict[str, Any]]:
    """A model, its inputs and the options of `analyze`."""
    torch.manual_seed(0)
    if name == "stream":
        return Stream().to(dtype), torch.randn(2, 4, dtype=dtype), {}
    model, inputs = BENCH.CASES[name]()
    inputs = torch.randn(inputs.shape, dtype=dtype) if inputs.is_floating_point() else inputs
    return model.to(dtype).eval(), inputs, {"batchnorm": "folded"} if name in ("resnet18", "densenet121") else {}


def random_scales(plan: fxenorm.Plan, seed: int) -> torch.Tensor:
    """Log-scales, 0 where balance could not undo them."""
    scales = torch.randn(plan.num_scales, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for item in plan.held:
        scales[list(item.variables)] = 0.0
    return scales


NAMES = ["stream", "chain4", "chain16", "chain16-heavy", "unet", "llama"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, dtype) for name in NAMES for dtype in (torch.float64, torch.float32)), ("resnet18", torch.float64)],
)
def test_one_answer_from_any_start(name: str, dtype: torch.dtype) -> None:
    """Weights agree to the digits of their type, whatever rescaling they start from; the function is kept."""
    model, inputs, options = made(name, dtype)
    plan = fxenorm.analyze(model, inputs, p=math.inf, **options)
    before = outputs(model, [inputs])
    reached = []
    for seed in range(2 if name == "resnet18" else 5):
        plan.rescale(random_scales(plan, seed))
        result = plan.balance()
        assert result.converged and result.solver == "max-balance" and result.passes <= 10
        assert result.residual is not None and result.residual <= 1e-9
        assert float(plan.imbalance()) <= (1e-9 if dtype == torch.float64 else 1e-5)
        reached.append(state_of(model))
    bound = 1e-9 if dtype == torch.float64 else 1e-5
    for state in reached[1:]:
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, reached[0][key], rtol=bound, atol=0)
    if dtype == torch.float64:
        assert relative_difference(before, outputs(model, [inputs])) <= TOLERANCE


def test_every_weight_lies_on_a_cycle_of_weights_no_smaller() -> None:
    """By definition, at the weights as they are; sweeps leave another answer from each start, and the residual says so."""
    model, inputs, _ = made("stream", torch.float64)
    names = [name for name, _ in model.named_parameters()]
    plan = fxenorm.analyze(model, inputs, p=math.inf)
    sweeps = fxenorm.analyze(model, inputs, p=math.inf, solver="gauss-seidel")
    for seed in range(2):
        plan.rescale(random_scales(plan, seed))
        result = sweeps.balance(tol=1e-9, max_iterations=10_000)
        assert result.converged and result.residual is not None and result.residual > 1e-4
        assert f"{result.residual:.3g}" in str(result)
        assert not on_cycles(*entries_of_model(model, plan, names), 0.9 * result.residual)
        assert on_cycles(*entries_of_model(model, plan, names), result.residual + 1e-9)
        plan.balance()
        assert on_cycles(*entries_of_model(model, plan, names), 1e-9)


def test_it_is_undone_and_done_again() -> None:
    model, inputs, _ = made("stream", torch.float64)
    plan = fxenorm.analyze(model, inputs, p=math.inf)
    start = copy.deepcopy(model.state_dict())
    result = plan.balance()
    assert plan.balance().log_scales.abs().max() <= 1e-9, "there is nothing left to do"
    plan.rescale(-result.log_scales)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, start[key], rtol=1e-12, atol=0)


def test_frozen_weights_stay_and_the_rest_has_its_own_answer() -> None:
    """The same from another start, to which balancing another norm has led, bit by bit with the frozen weights."""
    model, inputs, _ = made("stream", torch.float64)
    assert isinstance(model, Stream)
    model.up[0].weight.requires_grad_(False)
    frozen, other = model.up[0].weight.detach().clone(), copy.deepcopy(model)
    plan = fxenorm.analyze(model, inputs, p=math.inf)
    assert fxenorm.analyze(other, inputs, p=2.0).balance().log_scales.any()
    for one in (plan, plan.bind(other)):
        result = one.balance()
        assert result.converged and result.held and result.log_scales.any()
        assert result.residual is not None and result.residual <= 1e-9
    assert isinstance(other, Stream)
    assert torch.equal(model.up[0].weight, frozen) and torch.equal(other.up[0].weight, frozen)
    for key, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[key], rtol=1e-9, atol=0)


def test_powers_of_two_leave_the_outputs_alone() -> None:
    """Each factor is a power of two, within one of the answer, and the largest weight does not rise."""
    model, inputs, _ = made("stream", torch.float32)
    plan = fxenorm.analyze(model, inputs, p=math.inf, scales="pow2")
    exact = fxenorm.analyze(copy.deepcopy(model), inputs, p=math.inf)
    plan.rescale((8 * math.log(2.0) * torch.randn(plan.num_scales, dtype=torch.float64).sign()).tolist())
    before, norm = model(inputs), float(plan.norm())
    result = plan.balance()
    octaves = result.log_scales / math.log(2.0)
    assert result.powers_of_two and torch.equal(octaves.round(), octaves.round(decimals=9)) and octaves.any()
    assert torch.equal(model(inputs), before) and result.norm_after <= norm
    assert result.norm_after <= 4 * exact.balance().norm_after
    assert result.residual is not None and 0 < result.residual < 4 * math.log(2.0)


def test_no_weight_leaves_the_range_of_its_type() -> None:
    """In float16, with copies whose room is small: what would overflow goes as far as there is room."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).half()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.fill_(6e4)
    plan = fxenorm.analyze(model, torch.zeros(1, 6, dtype=torch.float16), p=math.inf)
    result = plan.balance()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any("overflow" in item.reason for item in result.held) and not result.converged


def test_the_limit_of_log_scales_is_kept() -> None:
    model, inputs, _ = made("stream", torch.float64)
    plan = fxenorm.analyze(model, inputs, p=math.inf, max_log_scale=0.05)
    result = plan.balance()
    assert result.log_scales.abs().max() <= 0.05 + 1e-12 and not result.converged
    assert any("max_log_scale" in item.reason for item in result.held)
    assert result.residual is not None and result.residual <= 1e-9, "of those that nothing stopped"

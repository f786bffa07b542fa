"""step and balance: the outputs stay, the objective falls, and the answer is the minimum."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm

from ..helpers import (
    TOLERANCE,
    assert_same_state,
    generator,
    log_factors,
    mlp,
    objective,
    outputs,
    randomise,
    randomness_off,
    relative_difference,
    soundness_error,
    state_of,
    tensors,
)
from ..zoo import CASES

POWERS = (1.0, 2.0, 3.0)
ASYMMETRIES = (1.0, 1.2)


def conv_chain() -> nn.Module:
    """Four convolutions without biases and a linear layer without one."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 7, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(7, 8, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4, bias=False),
    )  # fmt: skip


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    """A torchvision classifier."""

    def build() -> nn.Module:
        torchvision = pytest.importorskip("torchvision")
        return torchvision.models.get_model(name, weights=None)

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv_chain": (conv_chain, (2, 3, 11, 13)),
    "mlp": (lambda: mlp(9, 8, 7, 6, 5, 4), (6, 9)),
    "mlp_without_biases": (lambda: mlp(5, 7, 8, 6, 4, bias=False), (9, 5)),
    "resnet18": (torchvision_model("resnet18"), (3, 3, 32, 40)),
    "mobilenet_v3_small": (torchvision_model("mobilenet_v3_small"), (3, 3, 32, 40)),
}
CHAIN_LAYERS = ["0.weight", "2.weight", "5.weight", "7.weight", "11.weight"]
MLP_LAYERS = ["0.weight", "2.weight", "4.weight", "6.weight", "8.weight"]


@cache
def network(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The network in float64 with random weights, and inputs."""
    build, shape = NETWORKS[name]
    inputs = (torch.randn(shape, dtype=torch.float64, generator=generator(0)),)
    return randomise(randomness_off(build().double()), inputs, seed=1), inputs


def plan_of(name: str, **options: Any) -> tuple[nn.Module, Any, tuple[torch.Tensor]]:
    """A fresh copy of the network, its plan and inputs."""
    model, inputs = network(name)
    model = copy.deepcopy(model)
    return model, fxenorm.analyze(model, inputs, **options), inputs


@pytest.mark.parametrize("c", ASYMMETRIES)
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_fifty_cycles_never_raise_the_objective_and_keep_the_outputs(name: str, p: float, c: float) -> None:
    model, plan, inputs = plan_of(name, p=p, c=c, modes="eval")
    before = outputs(model, inputs)
    norms = [plan.norm().item()]
    for _ in range(50):
        plan.step()
        norms.append(plan.norm().item())
    assert all(after <= earlier * (1 + 1e-12) for earlier, after in pairwise(norms))
    assert norms[-1] < 0.999 * norms[0], "control: there was something to gain"
    assert relative_difference(before, outputs(model, inputs)) <= TOLERANCE


@pytest.mark.parametrize("c", ASYMMETRIES)
@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("name", "layers"), [("conv_chain", CHAIN_LAYERS), ("mlp", MLP_LAYERS)])
def test_norm_is_the_weighted_sum_over_the_weights(name: str, layers: list[str], p: float, c: float) -> None:
    model, plan, _ = plan_of(name, p=p, c=c, modes="eval")
    weights = {layer: c ** (-p * depth) for depth, layer in enumerate(layers)}
    for _ in range(2):
        value, expected = plan.norm().item() ** p, objective(model, plan, layers, p, weights)
        # only ratios of layer weights matter: depth may be counted from any number
        shift = round(math.log(value / expected) / (p * math.log(c))) if c != 1 else 0
        assert value == pytest.approx(expected * c ** (p * shift), rel=1e-9)
        plan.step()


def test_biases_are_counted_on_request_only() -> None:
    model, plan, _ = plan_of("mlp", modes="eval")
    biases = [layer.replace("weight", "bias") for layer in MLP_LAYERS[:-1]]  # the last one carries no scale
    assert plan.norm().item() ** 2 == pytest.approx(objective(model, plan, MLP_LAYERS, 2))
    counted = fxenorm.analyze(model, network("mlp")[1], biases="count", modes="eval")
    assert counted.norm().item() ** 2 == pytest.approx(objective(model, plan, MLP_LAYERS + biases, 2))


def test_batch_norm_gammas_are_counted_and_what_stands_before_them_is_not() -> None:
    model = randomise(CASES["batch_norm"].build().double())
    plan = fxenorm.analyze(model, CASES["batch_norm"].inputs())
    assert plan.norm().item() ** 2 == pytest.approx(objective(model, plan, ["1.weight", "3.weight"], 2))


def cycle_by_hand(left: torch.Tensor, right: torch.Tensor, p: float) -> torch.Tensor:
    """Log-scales between two layers: half the logarithm of column norms over row norms."""
    rows = torch.linalg.vector_norm(left.flatten(1), ord=p, dim=1)
    columns = torch.linalg.vector_norm(right.transpose(0, 1).flatten(1), ord=p, dim=1)
    return 0.5 * (columns / rows).log()


@pytest.mark.parametrize("p", [*POWERS, 0.5, math.inf])
def test_one_cycle_is_half_the_log_of_the_norm_ratio(p: float) -> None:
    model, plan, _ = plan_of("conv_chain", p=p, modes="eval")
    weights = [tensor.detach().clone() for tensor in model.parameters()]
    plan.step()
    scales = [cycle_by_hand(left, right, p) for left, right in pairwise(weights)]
    for j, (old, new) in enumerate(zip(weights, model.parameters(), strict=True)):
        expected = old.clone()
        if j < len(scales):
            expected *= scales[j].exp().view([-1] + [1] * (old.ndim - 1))
        if j > 0:
            expected /= scales[j - 1].exp().view([1, -1] + [1] * (old.ndim - 2))
        torch.testing.assert_close(new.detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_gauss_seidel_step_takes_layer_after_layer_in_the_order_of_the_network(p: float) -> None:
    """Each from what the ones before it have left: the exact minimum of each group in turn."""
    model, plan, _ = plan_of("conv_chain", p=p, solver="gauss-seidel", modes="eval")
    expected = [tensor.detach().clone() for tensor in model.parameters()]
    plan.step()
    for left, right in pairwise(expected):
        scales = cycle_by_hand(left, right, p).exp()
        left *= scales.view([-1] + [1] * (left.ndim - 1))
        right /= scales.view([1, -1] + [1] * (right.ndim - 2))
    for new, old in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=1e-12, atol=0)


@pytest.mark.parametrize("anew", [False, True])
def test_cycles_are_repeated_steps(anew: bool) -> None:
    """Of one plan, and of plans that have made no step before."""
    model, plan, _ = plan_of("mlp", modes="eval")
    other = copy.deepcopy(model)
    plan.step(cycles=3)
    second = plan.bind(other)
    for _ in range(3):
        (plan.bind(other) if anew else second).step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("c", ASYMMETRIES)
@pytest.mark.parametrize("p", [*POWERS, 1.5, 4.0, 12.0])
@pytest.mark.parametrize("name", ["conv_chain", "mlp_without_biases"])
def test_layer_norms_become_equal_on_a_chain_without_biases(name: str, p: float, c: float) -> None:
    model, plan, inputs = plan_of(name, p=p, c=c, modes="eval")
    before = outputs(model, inputs)
    result = plan.balance(tol=1e-10, max_iterations=20_000)
    assert result.converged and result.norm_after <= result.norm_before and result.imbalance_after <= 1e-10
    norms = [weight.detach().abs().pow(p).sum().item() ** (1 / p) for weight in model.parameters()]
    assert [norm.item() for norm in plan.layer_norms().values()] == pytest.approx(norms, rel=1e-12)
    for left, right in pairwise(norms):
        assert right == pytest.approx(c * left, rel=1e-8)  # R = c L at the fixed point
    assert relative_difference(before, outputs(model, inputs)) <= TOLERANCE
    assert plan.imbalance().item() <= 1e-10
    state = state_of(model)
    assert plan.balance(tol=1e-8).iterations == 0
    assert_same_state(model, state)
    text = str(result)
    assert f"{result.norm_before:.6g} -> {result.norm_after:.6g}" in text and "converged after" in text


@pytest.mark.parametrize("name", ["mlp", "resnet18"])
def test_gradient_of_the_objective_vanishes_at_the_answer(name: str) -> None:
    model, plan, _ = plan_of(name, modes="eval")
    names = MLP_LAYERS if name == "mlp" else [n for n in plan.exponents if n.endswith("weight")]

    def gradient() -> torch.Tensor:
        log_scales = torch.zeros(plan.num_scales, dtype=torch.float64, requires_grad=True)
        named = tensors(model)
        total = sum(
            (named[n].detach().double() ** 2 * (2 * log_factors(plan.exponents[n], log_scales, named[n].shape)).exp()).sum()
            for n in names
        )
        (slope,) = torch.autograd.grad(total, log_scales)
        return slope / plan.norm().item() ** 2

    start = gradient().abs().max().item()
    result = plan.balance(tol=1e-7, max_iterations=20_000)
    assert result.converged
    assert gradient().abs().max().item() < 1e-7 < 1e-4 < start


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_balance_reports_is_what_the_plan_says_before_and_after(frozen: bool, p: float) -> None:
    """Also where a frozen weight leaves sums of variables only."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    model[4].requires_grad_(not frozen)
    plan = fxenorm.analyze(model, torch.randn(3, 4, dtype=torch.float64), p=p)

    def said() -> list[float]:
        return [plan.norm().item(), *(norm.item() for norm in plan.layer_norms().values())]

    before, imbalance, weights = said(), plan.imbalance().item(), [layer.weight.detach().clone() for layer in model[::2]]
    result = plan.balance(tol=1e-7)
    after = said()
    assert result.converged and result.imbalance_after <= 1e-7 and result.imbalance_before > 0.01
    assert frozen or result.imbalance_before == pytest.approx(imbalance)
    assert [result.norm_before, *result.layer_norms_before.values()] == pytest.approx(before)
    assert [result.norm_after, *result.layer_norms_after.values()] == pytest.approx(after)
    assert list(result.layer_norms_before) == list(result.layer_norms_after) == list(plan.layer_norms()) == ["0", "2", "4", "6"]
    assert result.norm_after < result.norm_before or math.isinf(p)
    assert torch.equal(model[4].weight, weights[2]) == frozen
    assert bool(result.held) == frozen and all("requires_grad=False" in item.reason for item in result.held)
    for number, (layer, weight) in enumerate(zip(model[::2], weights, strict=True)):
        factor = (layer.weight / weight).detach().log()
        rows = result.log_scales[[*range(0, 5)]] if number == 0 else None
        assert rows is None or torch.allclose(factor, rows[:, None].expand(5, 4))


def test_balance_reports_what_it_did() -> None:
    model, plan, inputs = plan_of("conv_chain")
    norm, imbalance = plan.norm().item(), plan.imbalance().item()
    result = plan.balance()
    assert result.converged and result.iterations >= 1 and result.passes >= 1 and not result.held
    assert result.log_scales.shape == (plan.num_scales,)
    text = str(result)
    assert f"{norm:.3g}"[:3] in text and text.strip()
    assert plan.norm().item() < norm and plan.imbalance().item() <= 1e-6 < imbalance
    assert soundness_error(model, plan, inputs, "train") <= TOLERANCE


def test_balance_that_runs_out_of_iterations_says_so() -> None:
    model, plan, inputs = plan_of("mlp")
    before = outputs(model, inputs)
    result = plan.balance(tol=1e-12, max_iterations=2)
    assert not result.converged and result.iterations == 2
    assert relative_difference(before, outputs(model, inputs)) <= TOLERANCE, "what was done is sound all the same"


def test_largest_weight_norm_on_two_layers_by_hand() -> None:
    """p = inf: s = log(out range / in range) / 2, and both ranges are equal after one cycle."""
    model = randomise(nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double())
    plan = fxenorm.analyze(model, torch.randn(2, 4, dtype=torch.float64), p=math.inf)
    first, second = (weight.detach().clone() for weight in model.parameters())
    written, read = first.abs().amax(1), second.abs().amax(0)
    plan.step()
    expected = (0.5 * (read / written).log()).exp()
    torch.testing.assert_close(model[0].weight.detach(), first * expected[:, None], rtol=1e-12, atol=0)
    torch.testing.assert_close(model[0].weight.detach().abs().amax(1), model[2].weight.detach().abs().amax(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["conv_chain", "mlp", "residual", "product", "square", "attention", "shared_in_chain"])
def test_balance_never_raises_the_largest_weight(name: str) -> None:
    if name in NETWORKS:
        model, plan, inputs = plan_of(name, p=math.inf)
    else:
        inputs = CASES[name].inputs()
        model = randomise(CASES[name].build().double(), seed=7)
        plan = fxenorm.analyze(model, inputs, p=math.inf)
    before = outputs(model, inputs)
    largest = plan.norm().item()
    counted = [n for n in plan.exponents if "bias" not in n]
    assert largest == pytest.approx(max(tensors(model)[n].abs().max().item() for n in counted))
    for _ in range(10):
        plan.step()
        assert plan.norm().item() <= largest * (1 + 1e-12)
        largest = plan.norm().item()
    plan.balance()
    assert plan.norm().item() <= largest * (1 + 1e-12)
    assert relative_difference(before, outputs(model, inputs)) <= TOLERANCE


@pytest.mark.filterwarnings(
    "ignore:(balance|step).. moved nothing:fxenorm.errors.FxenormWarning"
)  # some networks have one-sided scales only
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_scales])
def test_cycles_on_every_small_network(name: str) -> None:
    """Products, loops, sharing and attention too: never up, never a change of the outputs."""
    inputs = CASES[name].inputs()
    model = randomise(randomness_off(CASES[name].build().double()), seed=7)
    plan = fxenorm.analyze(model, inputs)
    before = outputs(model, inputs)
    norms = [plan.norm().item()]
    for _ in range(10):
        plan.step()
        norms.append(plan.norm().item())
    assert all(after <= earlier * (1 + 1e-12) for earlier, after in pairwise(norms))
    plan.balance()
    assert plan.norm().item() <= norms[-1] * (1 + 1e-12)
    assert relative_difference(before, outputs(model, inputs)) <= TOLERANCE

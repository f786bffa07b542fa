"""Arms that balance other objectives: each network of a stack by its own masses, and what is to be small is smaller then."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from study.methods import METHODS, Objective
from study.methods.objectives import images_of
from study.networks.build import layers_of
from study.training import Training, train
from torch import nn

from fxenorm.errors import OptionError

from ..helpers import relative_difference
from .made_up import small, small_task

TASK = small_task()
CPU = torch.device("cpu")
ONCE = [method.name for method in METHODS.values() if isinstance(method, Objective) and not method.every]
EVERY = [method.name for method in METHODS.values() if isinstance(method, Objective) and method.every]


def often(name: str, every: int = 3) -> Objective:
    """An arm that balances every few steps."""
    method = METHODS[name]
    assert isinstance(method, Objective)
    return dataclasses.replace(method, every=every)


def trained(of: list[Any], steps: int) -> Training:
    """Some runs after a few steps of the arm, with gradients of one loss on fixed images."""
    training = Training(of, TASK, CPU)
    x = TASK.inputs(TASK.train.images[None, :16]).to(training.dtype).expand(len(of), -1, -1, -1, -1)
    classes = TASK.train.classes[:16].expand(len(of), -1)
    for step in range(1, steps + 1):
        training.optimizer.zero_grad()
        training.losses(training.forward(x), x, classes).sum().backward()
        for group in training.optimizer.param_groups:
            group["lr"] = of[0].rate
        training.optimizer.rates = torch.tensor([one.rate for one in of])  # type: ignore[attr-defined]
        training.optimizer.step()
        of[0].method.after_step(training, step)
    return training


def test_every_objective_has_both_arms() -> None:
    assert len(ONCE) == len(EVERY) == 4
    assert all(METHODS[name].every == 100 for name in EVERY)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", EVERY)
def test_each_network_of_a_stack_is_balanced_as_it_is_alone(name: str) -> None:
    """Seeds come in no order, so that a network is not taken for its neighbour; the optimizer's state is compared too."""
    pairs = ((0.02, 4), (0.005, 3))
    of = [small(often(name), depth=3, start="layers", dtype="float64", rate=rate, seed=seed) for rate, seed in pairs]
    together = trained(of, 4)
    for number, one in enumerate(of):
        alone = trained([one], 4)
        for mine, layer in zip(together.model.layers, layers_of(alone.model), strict=True):
            assert relative_difference(layer.weight.detach(), mine.weight[number].detach()) < 1e-5
            state = (
                training.optimizer.state[p]["momentum_buffer"] for training, p in ((alone, layer.weight), (together, mine.weight))
            )
            expected, found = state
            assert relative_difference(expected, found[number]) < 1e-5


@pytest.mark.parametrize("name", ["teleport, every 100", "path AM/GM, every 100"])
def test_the_state_follows_and_other_steps_change_nothing(name: str) -> None:
    """Weights go times D, momentum times 1 / D: their product stays."""
    training = trained([small(often(name, every=2), start="layers", dtype="float64", seed=seed) for seed in (1, 2)], 1)
    weight = training.model.layers[1].weight
    before, buffer = weight.detach().clone(), training.optimizer.state[weight]["momentum_buffer"].clone()
    training.of[0].method.after_step(training, 3)
    assert torch.equal(before, weight)
    training.of[0].method.after_step(training, 4)
    assert not torch.allclose(before, weight.detach(), rtol=1e-3), "control: it was balanced"
    torch.testing.assert_close(training.optimizer.state[weight]["momentum_buffer"] * weight.detach(), buffer * before)


# ---------------------------------------------------------------- what is to be small, by its definition


def squared_gradient(network: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> float:
    """The squared norm of the gradient of the mean loss."""
    loss = nn.functional.cross_entropy(network(x), classes)
    return float(sum(g.square().sum() for g in torch.autograd.grad(loss, list(network.parameters()))))


def unevenness(values: torch.Tensor) -> float:
    """Log of the arithmetic mean over the geometric mean of the entries above zero."""
    values = values[values > 0]
    return float(values.mean().log() - values.log().mean())


def fisher_unevenness(network: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> float:
    """Of the mean over the images of squared gradients, image by image."""
    parameters = list(network.parameters())
    totals = [torch.zeros_like(p) for p in parameters]
    for image, label in zip(x, classes, strict=True):
        loss = nn.functional.cross_entropy(network(image[None]), label[None])
        for total, gradient in zip(totals, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient.square() / len(x)
    return unevenness(torch.cat([total.flatten() for total in totals]))


def path_unevenness(network: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> float:
    """Of the sums over paths through each weight of the product of the other squared weights, by matrix products."""
    squares = [layer.weight.detach().square() for layer in layers_of(network)]
    into = [torch.ones(squares[0].shape[1], dtype=x.dtype)]
    for square in squares[:-1]:
        into.append(square @ into[-1])
    out = [torch.ones(squares[-1].shape[0], dtype=x.dtype)]
    for square in squares[:0:-1]:
        out.append(square.T @ out[-1])
    found = [torch.outer(after, before) for before, after in zip(into, reversed(out), strict=True)]
    return unevenness(torch.cat([values.flatten() for values in (*found, *out)]))


MEASURES = {"gradient": squared_gradient, "fisher": fisher_unevenness, "path": path_unevenness}


@pytest.mark.parametrize("name", ONCE)
def test_the_objective_is_better_in_each_network_and_the_function_stays(name: str) -> None:
    """The least has no better neighbour along random rescalings; the greatest is at the bound."""
    method = METHODS[name]
    assert isinstance(method, Objective)
    plain, moved = (
        Training([small(arm, start="layers", dtype="float64", seed=s) for s in (1, 2)], TASK, CPU) for arm in ("plain", method)
    )
    sign = -1.0 if method.maximise else 1.0
    measure = MEASURES[method.objective]
    for (before, seed), (after, _) in zip(plain.networks(), moved.networks(), strict=True):
        x, classes = images_of(moved, after, seed, 0)
        torch.testing.assert_close(before(x), after(x))
        best = measure(after, x, classes)
        assert sign * best < sign * measure(before, x, classes) - 1e-3
        plan = moved.plan_alone(after)
        if method.maximise:
            ratio = (layers_of(after)[0].weight.detach() / layers_of(before)[0].weight.detach()).log().abs()
            torch.testing.assert_close(ratio, torch.full_like(ratio, 0.3))
            continue
        if method.bound is not None:
            continue
        random = torch.Generator().manual_seed(0)
        for size in (1e-3, -1e-3):
            step = size * torch.randn(plan.num_scales, generator=random, dtype=torch.float64)
            plan.rescale(step)
            assert measure(after, x, classes) > best - 1e-9 * abs(best)
            plan.rescale(-step)


@pytest.mark.parametrize("name", EVERY)
def test_a_network_without_finite_masses_stays_and_the_others_are_balanced(name: str) -> None:
    """Between a step that overflows and the loss that shows it."""
    together = Training([small(often(name), depth=3, dtype="float64", seed=seed) for seed in (1, 2)], TASK, CPU)
    weights = [layer.weight for layer in together.model.layers]
    with torch.no_grad():
        weights[0][0] = float("nan")
        weights[1][1].mul_(2.0)
    before = [weight.detach().clone() for weight in weights]
    together.of[0].method.after_step(together, 3)
    for weight, old in zip(weights, before, strict=True):
        assert torch.equal(weight[0].nan_to_num(), old[0].nan_to_num())
        assert not torch.allclose(weight[1], old[1]) and weight[1].isfinite().all()


def test_a_start_that_cannot_be_balanced_is_told() -> None:
    arm = dataclasses.replace(often("path AM/GM, every 100"), name="paths")
    with pytest.raises(OptionError, match="no paths"):
        train([small(arm, experiment="transformer", width=8)], TASK)


def test_a_run_that_is_lost_leaves_the_others_alone() -> None:
    of = [small(often("teleport, every 100", every=1), steps=4, rate=rate, seed=3) for rate in (0.01, 1e6)]
    good, lost = train(of, TASK)
    (alone,) = train([of[0]], TASK)
    assert lost["diverged"] and not good["diverged"]
    assert good["loss"] == pytest.approx(alone["loss"], rel=1e-2)

"""Momentum after any number of cycles is that of an SGD that was fed the rescaled gradients all along."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm

from ..helpers import generator, log_factors, randomise

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.9},
    "dampened": {"momentum": 0.8, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "maximised": {"momentum": 0.9, "maximize": True},
    "foreach": {"momentum": 0.9, "foreach": True},
    "without": {},
}


def network() -> nn.Sequential:
    """Convolutions with and without bias, a norm, and a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 3 * 4, 4),
    )
    return randomise(model.double(), seed=4)


INPUTS = torch.randn(8, 3, 7, 8, dtype=torch.float64, generator=generator(5))


def backward(model: nn.Module, step: int) -> None:
    """Gradients of some loss that differs from step to step."""
    target = torch.randn(8, 4, dtype=torch.float64, generator=generator(100 + step))
    model.zero_grad(set_to_none=True)
    ((model(INPUTS) - target) ** 2).mean().backward()


def fed_with(history: Mapping[str, list[torch.Tensor]], settings: Mapping[str, Any]) -> dict[str, torch.Tensor | None]:
    """The momentum of a fresh SGD, stepped once for every gradient of the history."""
    parameters = {name: nn.Parameter(torch.zeros_like(gradients[0])) for name, gradients in history.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, **settings)
    for step in range(len(next(iter(history.values())))):
        for name, parameter in parameters.items():
            parameter.grad = history[name][step].clone()
        optimizer.step()
    return {name: optimizer.state[parameter].get("momentum_buffer") for name, parameter in parameters.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_momentum_is_that_of_rescaled_gradients(variant: str) -> None:
    settings = VARIANTS[variant]
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, **settings)
    history: dict[str, list[torch.Tensor]] = {name: [] for name, _ in model.named_parameters()}
    largest = 0.0
    for step in range(4):
        backward(model, step)
        optimizer.step()
        for name, parameter in model.named_parameters():
            history[name].append(parameter.grad.clone())
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        plan.step(optimizer)
        for name, parameter in model.named_parameters():
            factor = parameter.detach() / before[name]  # every entry is non-zero
            largest = max(largest, (factor - 1).abs().max().item())
            history[name] = [gradient / factor for gradient in history[name]]
        for name, expected in fed_with(history, settings).items():
            buffer = optimizer.state[model.get_parameter(name)].get("momentum_buffer")
            assert (buffer is None) == (expected is None), name
            if expected is not None:
                torch.testing.assert_close(
                    buffer, expected, rtol=1e-10, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}"
                )
    assert largest > 0.1, "control: the cycles moved the weights"


@pytest.mark.parametrize("method", ["step", "balance", "rescale"])
def test_every_way_of_rescaling_moves_the_momentum(method: str) -> None:
    """The buffer is divided by what the weight is multiplied by, also where weight decay has been mixed in."""
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-2)
    for step in range(2):
        backward(model, step)
        optimizer.step()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: optimizer.state[parameter]["momentum_buffer"].clone() for name, parameter in model.named_parameters()}
    if method == "rescale":
        log_scales = torch.rand(plan.num_scales, dtype=torch.float64, generator=generator(6)) - 0.5
        plan.rescale(log_scales, optimizer)
        for name, terms in plan.exponents.items():
            factor = log_factors(terms, log_scales, weights[name].shape).exp()
            torch.testing.assert_close(model.get_parameter(name), weights[name] * factor, rtol=1e-12, atol=0)
    else:
        getattr(plan, method)(optimizer)
    for name, parameter in model.named_parameters():
        factor = parameter.detach() / weights[name]
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], buffers[name] / factor, rtol=1e-10, atol=0)
        assert (name in plan.exponents) == (not torch.equal(parameter, weights[name]))


def test_training_goes_on_as_if_started_from_the_balanced_weights() -> None:
    """Without momentum, a step between two SGD steps changes nothing but the coordinates of the first."""
    model = network()
    reference = copy.deepcopy(model)
    plan = fxenorm.analyze(model, INPUTS)
    plan.balance()
    reference.load_state_dict(model.state_dict())
    for one in (model, reference):
        backward(one, 0)
        torch.optim.SGD(one.parameters(), lr=1e-3).step()
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, other), "the plan left no hook, no state and no wrapper in the model"


def test_gradients_can_follow() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    backward(model, 0)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    plan.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), "left alone by default"
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plan.step(grads=True)
    rescaled = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(rescaled[name], gradients[name] * weights[name] / parameter.detach(), rtol=1e-10, atol=0)


def test_several_optimizers_and_wrapped_ones() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)

    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    first = torch.optim.SGD(list(model[0].parameters()), lr=1e-3, momentum=0.9)
    others = torch.optim.SGD([p for layer in (model[2], model[3], model[6]) for p in layer.parameters()], lr=1e-3, momentum=0.5)
    backward(model, 0)
    for optimizer in (first, others):
        optimizer.step()
    states = {p: o.state[p]["momentum_buffer"].clone() for o in (first, others) for p in o.state}
    before = {p: p.detach().clone() for p in states}
    plan.step([first, Wrapper(others)])
    for optimizer in (first, others):
        for p in optimizer.state:
            expected = states[p] * before[p] / p.detach()
            torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], expected, rtol=1e-10, atol=0)

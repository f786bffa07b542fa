"""Gradients that follow a step: in the prepared step too, whose gradients are other tensors after every backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.rescale.prepared_step import PreparedStep


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
    )


Session = tuple[nn.Module, torch.optim.Optimizer, fxenorm.Plan]


def session(executor: str, start: dict[str, torch.Tensor]) -> Session:
    model = network()
    model.load_state_dict(start)
    plan = fxenorm.analyze(model.eval(), torch.randn(2, 3, 7, 7), backend=executor)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), plan


def backward(model: nn.Module, seed: int) -> None:
    model(torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(seed))).square().sum().backward()


def flat_buffer(model: nn.Module, seed: int) -> None:
    """All gradients in one piece of memory, as some engines keep them."""
    backward(model, seed)
    parameters = list(model.parameters())
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])
    for parameter, part in zip(parameters, flat.split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def without_one(model: nn.Module, seed: int) -> None:
    backward(model, seed)
    model[3].weight.grad = None


def other_strides(model: nn.Module, seed: int) -> None:
    backward(model, seed)
    model[3].weight.grad = model[3].weight.grad.contiguous(memory_format=torch.channels_last)


def same_tensors(model: nn.Module, seed: int) -> None:
    """Gradients that were there are set to zero and used again."""
    kept = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    backward(model, seed)
    for parameter, before in zip(model.parameters(), kept, strict=True):
        if before is not None and before.stride() == parameter.grad.stride():
            parameter.grad = before.copy_(parameter.grad)


def shared(model: nn.Module, seed: int) -> None:
    """A gradient over the memory of a weight that moves: the step takes it for what it is, or refuses; it never writes twice."""
    backward(model, seed)
    model[6].weight.grad = model[6].weight.detach()


KINDS: tuple[Callable[[nn.Module, int], None], ...] = (backward, flat_buffer, without_one, other_strides, same_tensors)


@pytest.mark.parametrize("executor", ["eager", "compiled"])
def test_gradients_follow_whatever_tensors_they_are(executor: str) -> None:
    """A gradient is multiplied by the inverse of its weight's factor, by definition, in every step of a varied run."""
    model, optimizer, plan = session(executor, network().state_dict())
    order = [kind for kind in KINDS for _ in range(2)] + [KINDS[number % len(KINDS)] for number in (0, 2, 4, 1, 3, 0)]
    for number, kind in enumerate(order):
        if kind is not same_tensors:
            model.zero_grad(set_to_none=True)
        kind(model, number)
        optimizer.step()
        with torch.no_grad():
            model[0].weight.mul_(torch.linspace(0.7, 1.4, 8)[:, None, None, None])
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
        follows = number % 7 != 5
        plan.step(optimizer, grads=follows)
        moved = 0
        for parameter, weight, gradient in zip(model.parameters(), weights, gradients, strict=True):
            if gradient is None:
                assert parameter.grad is None
                continue
            factor = torch.where(weight == 0, 1.0, parameter.detach() / weight)
            moved += int((factor != 1).any())
            expected = torch.where(weight == 0, parameter.grad, gradient / factor) if follows else gradient
            torch.testing.assert_close(parameter.grad, expected, rtol=2e-6, atol=1e-30)
        assert moved


def test_new_gradients_take_the_places_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another look at the model; the same bits as with one."""
    start, found, made = network().state_dict(), [], []
    real = PreparedStep.__init__
    monkeypatch.setattr(PreparedStep, "__init__", lambda self, *rest: (made.append(1), real(self, *rest))[1])
    for forgets in (False, True):
        model, optimizer, plan = session("compiled", start)
        made.clear()
        for number in range(5):
            kept = [parameter.grad for parameter in model.parameters()]
            model.zero_grad(set_to_none=True)
            backward(model, number)
            assert all(one is None or one is not parameter.grad for one, parameter in zip(kept, model.parameters(), strict=True))
            optimizer.step()
            if forgets:
                plan.rescaler.last_step.prepared = None
            plan.step(optimizer, grads=True)
        found.append([tensor for parameter in model.parameters() for tensor in (parameter.detach(), parameter.grad)])
        # The first step makes the optimizer's state.
        assert len(made) == (5 if forgets else 1)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("executor", ["eager", "compiled"])
def test_gradients_over_the_memory_of_weights_are_refused(executor: str) -> None:
    model, optimizer, plan = session(executor, network().state_dict())
    for number in range(2):
        model.zero_grad(set_to_none=True)
        backward(model, number)
        optimizer.step()
        plan.step(optimizer, grads=True)
    shared(model, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(fxenorm.FxenormError, match="share memory"):
        plan.step(optimizer, grads=True)
    assert all(map(torch.equal, before, model.parameters()))


def test_autograd_notices_that_a_gradient_was_written() -> None:
    model, optimizer, plan = session("compiled", network().state_dict())
    for number in range(3):
        model.zero_grad(set_to_none=True)
        backward(model, number)
        optimizer.step()
        moved = [parameter for name, parameter in model.named_parameters() if name in plan.exponents]
        versions = [parameter.grad._version for parameter in moved]
        plan.step(optimizer, grads=True)
        assert all(parameter.grad._version > one for parameter, one in zip(moved, versions, strict=True))

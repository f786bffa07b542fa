"""Every piece of memory is multiplied once, whoever holds it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import RescaleError

INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
OPTIMIZERS = {
    "SGD": (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), {"momentum_buffer": -1}),
    "Adam": (lambda parameters: torch.optim.Adam(parameters, lr=0.01), {"exp_avg": -1, "exp_avg_sq": -2}),
    "LBFGS": (lambda parameters: torch.optim.LBFGS(parameters, lr=0.01, max_iter=3), {}),
    "Adafactor": (lambda parameters: torch.optim.Adafactor(parameters, lr=0.01), {}),
}


def trained(make: object) -> tuple[nn.Sequential, fxenorm.Plan, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    plan = fxenorm.analyze(model, INPUTS.double())
    first = make(model.parameters())  # type: ignore[operator]

    def closure() -> Tensor:
        first.zero_grad()
        loss = model(INPUTS.double()).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        first.step(closure)
    with torch.no_grad():
        model[0].weight *= 4
    return model, plan, first


def tensors_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = []
    for state in optimizer.state.values():
        for value in state.values():
            found += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Tensor)]
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.parametrize("call", ["step", "again", "balance", "rescale"])
def test_two_optimizers_with_one_state(name: str, backend: str, call: str) -> None:
    """As if there were one."""
    found = []
    for both in (False, True):
        model, plan, first = trained(OPTIMIZERS[name][0])
        plan = fxenorm.analyze(model, INPUTS.double(), backend=backend)  # type: ignore[arg-type]
        second = OPTIMIZERS[name][0](model.parameters())
        second.load_state_dict(first.state_dict())
        given = [first, second] if both else [first]
        if call == "balance":
            plan.balance(given)
        elif call == "rescale":
            plan.rescale([0.5] * plan.num_scales, given)
        else:
            for _ in range(1 + (call == "again")):
                plan.step(given)
        found.append([*model.parameters(), *tensors_of(first)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_copy_given_twice_is_multiplied_once() -> None:
    model, plan, _ = trained(OPTIMIZERS["SGD"][0])
    average = copy.deepcopy(model)
    plan.track(average)
    plan.track(dict(average.named_parameters()))
    plan.track(list(average.parameters()))
    plan.step()
    plan.step()
    torch.testing.assert_close(average(INPUTS.double()), model(INPUTS.double()), rtol=1e-10, atol=1e-10)
    assert all(torch.allclose(one, other) for one, other in zip(average.parameters(), model.parameters(), strict=True))


def wrong_owner(state: dict[str, dict[str, Tensor]]) -> None:
    state["0.weight"]["exp_avg"] = state["0.weight"]["exp_avg_sq"]


def half_over_another(state: dict[str, dict[str, Tensor]]) -> None:
    whole = torch.ones(70, dtype=torch.float64)
    state["0.weight"]["exp_avg"], state["2.weight"]["exp_avg"] = whole[:48].view(8, 6), whole[46:].view(3, 8)


def copy_over_the_model(state: dict[str, dict[str, Tensor]]) -> None:
    state["0.bias"]["exp_avg"] = state["2.weight"]["exp_avg"][0]


@pytest.mark.parametrize("damage", [wrong_owner, half_over_another, copy_over_the_model])
@pytest.mark.parametrize("again", [False, True])
def test_what_overlaps_otherwise_is_refused(damage: object, again: bool) -> None:
    model, plan, optimizer = trained(OPTIMIZERS["Adam"][0])
    if again:
        plan.step(optimizer)
    damage({name: optimizer.state[parameter] for name, parameter in model.named_parameters()})  # type: ignore[operator]
    before = [tensor.detach().clone() for tensor in (*model.parameters(), *tensors_of(optimizer))]
    with pytest.raises(RescaleError, match="share memory"):
        plan.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip((*model.parameters(), *tensors_of(optimizer)), before, strict=True))


def test_a_copy_that_lies_over_weights_in_another_way_is_refused() -> None:
    """Over another weight, over its own a row further on, over its own the other way round: none of them is a copy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    memory = torch.randn(120, dtype=torch.float64, device="cpu")
    for index in (0, 2):
        model[index].weight.data = memory[30 * index : 30 * index + 36].view(6, 6)
    plan = fxenorm.analyze(model, INPUTS.double())
    before = [tensor.detach().clone() for tensor in (memory, *model.parameters())]
    for over in (model[2].weight.detach(), memory[6:42].view(6, 6), memory[3:39].view(6, 6), model[0].weight.detach().t()):
        handle = plan.track({"0.weight": over})
        for call in (plan.step, plan.balance, lambda: plan.rescale([0.5] * plan.num_scales)):
            with pytest.raises(RescaleError, match=r"0\.weight.*share memory"):
                call()
        assert all(torch.equal(a, b) for a, b in zip((memory, *model.parameters()), before, strict=True))
        handle.remove()
    one = torch.ones(6, 6, dtype=torch.float64, device="cpu")
    for other in ({"2.weight": one}, {"0.weight": one.t()}):
        handles = [plan.track({"0.weight": one}), plan.track(other)]
        with pytest.raises(RescaleError, match="share memory"):
            plan.step()
        assert (one == 1).all() and torch.equal(memory, before[0])
        for handle in handles:
            handle.remove()
    plan.track({"0.weight": model[0].weight.detach()})
    plan.rescale([0.5] * plan.num_scales)
    torch.testing.assert_close(model[0].weight.detach(), before[1] * math.exp(0.5))


def test_what_lies_between_one_another_is_no_overlap() -> None:
    model, plan, optimizer = trained(OPTIMIZERS["Adam"][0])
    state = optimizer.state[model[0].weight]
    both = torch.stack([state["exp_avg"], state["exp_avg_sq"]], -1)
    state["exp_avg"], state["exp_avg_sq"] = both[..., 0], both[..., 1]
    moment, weight = state["exp_avg"].clone(), model[0].weight.detach().clone()
    plan.step(optimizer)
    torch.testing.assert_close(state["exp_avg"] * model[0].weight / weight, moment)

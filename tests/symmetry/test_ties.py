"""Tensors that are one: found at the analysis, and met at the call where they have become one since."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import BindError

from ..helpers import draw_log_scales

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(6, 6), nn.ReLU())))


def shared_parameter(model: nn.Sequential) -> None:
    model[2].weight = model[0].weight


def shared_memory(model: nn.Sequential) -> None:
    model[2].weight = nn.Parameter(model[0].weight.detach())


def shared_data(model: nn.Sequential) -> None:
    model[2].weight.data = model[0].weight.data


def transposed_memory(model: nn.Sequential) -> None:
    model[2].weight = nn.Parameter(model[0].weight.detach().mT)


def part_of_memory(model: nn.Sequential) -> None:
    model[2].bias = nn.Parameter(model[0].weight.detach()[3])


def with_a_buffer(model: nn.Sequential) -> None:
    model[4].register_buffer("kept", model[0].weight.detach())


CALLS: dict[str, Callable[[fxenorm.Plan], object]] = {
    "step": lambda plan: plan.step(),
    "cycles": lambda plan: plan.step(cycles=3),
    "balance": lambda plan: plan.balance(),
    "rescale": lambda plan: plan.rescale(draw_log_scales(plan)),
}


@pytest.mark.parametrize("tie", [shared_parameter, shared_memory, shared_data, transposed_memory, part_of_memory, with_a_buffer])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_a_tie_that_is_made_later_is_refused_before_anything_is_written(
    tie: Callable[[nn.Sequential], None], call: str, backend: str
) -> None:
    model = chain()
    plan = fxenorm.analyze(model, INPUTS, backend=backend)  # type: ignore[arg-type]
    if tie is not with_a_buffer:  # one that the plan does not know is seen where names are looked up again
        plan.step()
    tie(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(BindError, match=r"share memory now.*nothing was rescaled"):
        CALLS[call](plan)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


class Branches(nn.Module):
    """Two branches whose first layers may be one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(x).relu()) + self.d(self.b(x).relu())


@pytest.mark.parametrize("distinct", [False, True], ids=["one parameter", "two over one memory"])
def test_two_parameters_over_one_memory_are_one(distinct: bool) -> None:
    """As many scales as a shared parameter gives, and everything that belongs to either follows."""
    model = Branches()
    model.b.weight = nn.Parameter(model.a.weight.detach()) if distinct else model.a.weight
    with torch.no_grad():
        model.c.weight *= 5
    plan = fxenorm.analyze(model, INPUTS)
    assert plan.num_scales == 6 and plan.verify(INPUTS)
    optimizer = torch.optim.Adam(model.parameters())
    model(INPUTS).square().sum().backward()
    optimizer.step()
    y, owners = model(INPUTS).detach(), [model.a.weight, model.b.weight]
    moments, weight = [optimizer.state[owner]["exp_avg"].clone() for owner in owners], model.a.weight.detach().clone()
    plan.step(optimizer)
    plan.step(optimizer, cycles=2)
    plan.balance(optimizer)
    torch.testing.assert_close(model(INPUTS), y, rtol=1e-4, atol=1e-5)
    growth = model.a.weight.detach() / weight
    assert (growth - 1).abs().max() > 0.1
    for owner, moment in zip(owners, moments, strict=True):
        torch.testing.assert_close(optimizer.state[owner]["exp_avg"] * growth, moment, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("middle", [False, True])
def test_a_decoder_over_the_encoders_memory_has_its_scales_fixed(middle: bool) -> None:
    """Its weight is a parameter of its own that shows the encoder's transposed, so that neither may move."""
    encoder, decoder, between = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(4, 4)
    decoder.weight = nn.Parameter(encoder.weight.detach().T)
    model = nn.Sequential(encoder, nn.ReLU(), *([between, nn.ReLU()] if middle else []), decoder)
    with torch.no_grad():
        before = model(INPUTS)
        plan = fxenorm.analyze(model, INPUTS)
        assert plan.num_scales == 0 and plan.verify(INPUTS)
        plan.rescale(draw_log_scales(plan))
        torch.testing.assert_close(model(INPUTS), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "b"])
def test_a_shared_parameter_is_excluded_by_any_of_its_names(name: str) -> None:
    model = Branches()
    model.b.weight = model.a.weight
    plan = fxenorm.analyze(model, INPUTS, exclude=[name])
    assert plan.num_scales == 0 and not {"a.weight", "b.weight"} & plan.exponents.keys()


def test_one_frozen_name_holds_both() -> None:
    model = Branches()
    model.b.weight = nn.Parameter(model.a.weight.detach(), requires_grad=False)
    plan = fxenorm.analyze(model, INPUTS)
    weight = model.a.weight.detach().clone()
    with pytest.warns(fxenorm.FxenormWarning, match="all 6 scales are held"):
        plan.step()
    assert plan.num_scales == 6 and torch.equal(model.a.weight, weight)

"""A step may go by what the one before has looked up, but whatever has changed in between is seen."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.plan.plan import Plan

from ..helpers import generator

INPUTS = torch.randn(6, 3, 6, 6, generator=generator(1))


class Session:
    """A network with a BatchNorm and a frozen layer, its optimizers, and a plan that is kept or made anew at each step."""

    def __init__(self, kept: bool, **options: Any) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6)]
        self.model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(6, 2))
        self.plan: Plan = fxenorm.analyze(self.model, INPUTS, **options)
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(self.model.parameters(), lr=1e-2)]
        self.arguments: dict[str, Any] = {}
        self.copies: list[nn.Module] = []
        self._kept = kept

    def train_step(self, number: int) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        weight = next(self.model.parameters())
        outputs = self.model(INPUTS.to(weight))
        (outputs - torch.randn(outputs.shape, generator=generator(50 + number)).to(outputs)).square().mean().backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def rescale(self) -> None:
        plan = self.plan if self._kept else self.plan.bind(self.model)
        for follower in () if self._kept else self.copies:
            plan.track(follower)
        plan.step(self.optimizers, **self.arguments)

    def everything(self) -> list[Tensor]:
        found = [*self.model.parameters(), *self.model.buffers()]
        found += [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                found += [value for value in state.values() if isinstance(value, Tensor)]
        return [*found, *(parameter for follower in self.copies for parameter in follower.parameters())]


def freeze(session: Session) -> None:
    session.model[3].requires_grad_(False)


def freeze_and_unfreeze(session: Session) -> None:
    freeze(session)
    session.train_step(90)
    session.rescale()
    session.model[3].requires_grad_(True)


def replace_a_parameter(session: Session) -> None:
    old = session.model[3].weight
    session.model[3].weight = nn.Parameter(old.detach() * 2)
    for group in session.optimizers[0].param_groups:
        group["params"] = [session.model[3].weight if parameter is old else parameter for parameter in group["params"]]


def replace_a_layer(session: Session) -> None:
    torch.manual_seed(5)
    session.model[6] = nn.Linear(16, 6)
    session.optimizers[0].add_param_group({"params": list(session.model[6].parameters())})


def leave_two_out(session: Session) -> None:
    """Their state stays where it was."""
    session.optimizers[0].param_groups[0]["params"] = list(session.model.parameters())[:-2]


def leave_two_out_and_take_them_in(session: Session) -> None:
    leave_two_out(session)
    session.train_step(91)
    session.rescale()
    session.optimizers[0].param_groups[0]["params"] = list(session.model.parameters())


def leave_one_to_another_optimizer(session: Session) -> None:
    last = list(session.model[8].parameters())
    kept = [parameter for parameter in session.model.parameters() if all(parameter is not other for other in last)]
    session.optimizers = [torch.optim.Adam(kept, lr=1e-2), torch.optim.SGD(last, lr=1e-2, momentum=0.9)]


def other_data(session: Session) -> None:
    for parameter in session.model.parameters():
        parameter.data = parameter.data.clone() * 1.5


def other_state(session: Session) -> None:
    optimizer = session.optimizers[0]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def other_state_tensors(session: Session) -> None:
    for state in session.optimizers[0].state.values():
        state["exp_avg"] = state["exp_avg"] * 3


def state_data(session: Session) -> None:
    for state in session.optimizers[0].state.values():
        state["exp_avg_sq"].data = state["exp_avg_sq"].data * 3


def no_state(session: Session) -> None:
    session.optimizers[0].state.clear()


def amsgrad(session: Session) -> None:
    for group in session.optimizers[0].param_groups:
        group["amsgrad"] = True
    for parameter, state in session.optimizers[0].state.items():
        state["max_exp_avg_sq"] = torch.ones_like(parameter)


def new_weights(session: Session) -> None:
    stored = {name: value * 2 if value.is_floating_point() else value for name, value in session.model.state_dict().items()}
    session.model.load_state_dict(stored)


def new_weights_assigned(session: Session) -> None:
    stored = {name: value.clone() * 2 for name, value in session.model.state_dict().items()}
    old = list(session.model.parameters())
    session.model.load_state_dict(stored, assign=True)
    swap = {id(one): other for one, other in zip(old, session.model.parameters(), strict=True)}
    for group in session.optimizers[0].param_groups:
        group["params"] = [swap[id(parameter)] for parameter in group["params"]]


def in_float64(session: Session) -> None:
    session.model.double()
    session.optimizers[0].state.clear()


def channels_last(session: Session) -> None:
    session.model.to(memory_format=torch.channels_last)


def copies(session: Session) -> None:
    session.copies = [copy.deepcopy(session.model)]
    session.plan.track(session.copies[0])


def statistics(session: Session) -> None:
    norm = session.model[1]
    norm.running_var = norm.running_var * 4


def bigger_lr(session: Session) -> None:
    session.optimizers[0].param_groups[0]["lr"] *= 0.1


def gradients(session: Session) -> None:
    session.arguments = {"grads": True}


def several_cycles(session: Session) -> None:
    session.arguments = {"cycles": 3}


def reset(session: Session) -> None:
    session.arguments = {"state": "reset"}


CHANGES: list[Callable[[Session], None]] = [
    freeze, freeze_and_unfreeze, replace_a_parameter, replace_a_layer, leave_two_out,
    leave_two_out_and_take_them_in, leave_one_to_another_optimizer, other_data, other_state,
    other_state_tensors, state_data, no_state, amsgrad, new_weights, new_weights_assigned, in_float64, channels_last, copies,
    statistics, bigger_lr, gradients, several_cycles, reset,
]  # fmt: skip


OPTIONS: list[dict[str, Any]] = [{}, {"batchnorm": "folded", "backend": "eager"}]
# The statistics by which weights count when BatchNorms are folded change with every step of training.
FOLDED = [(change, {"batchnorm": "folded"}) for change in (statistics, several_cycles)]


@pytest.mark.filterwarnings("ignore:these parameters are rescaled but belong to none:fxenorm.FxenormWarning")
@pytest.mark.parametrize(
    ("change", "options"),
    [*itertools.product(CHANGES, OPTIONS), *FOLDED],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_plan_that_is_kept_does_what_a_new_one_does(change: Callable[[Session], None], options: dict[str, Any]) -> None:
    kept, anew = (Session(kept, **options) for kept in (True, False))
    for number in range(6):
        for session in (kept, anew):
            if number == 3:
                change(session)
            session.train_step(number)
            session.rescale()
        for one, other in zip(kept.everything(), anew.everything(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)

"""Whatever is wrong with a model, its optimizer or its copies is raised before anything is written, in the hook too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import BindError, FxenormError, OptimizerError, RescaleError

from ..helpers import draw_log_scales, generator

INPUTS = (torch.randn(6, 4, generator=generator(1)),)


class Session:
    """A model, an optimizer that has stepped, a copy that follows, and all their tensors as they were."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        self.plan = fxenorm.analyze(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.train_step()

    def train_step(self) -> None:
        self.model.zero_grad()
        self.model(*INPUTS).square().mean().backward()
        self.optimizer.step()

    def state(self, layer: int = 2) -> dict[str, Any]:
        return self.optimizer.state[self.model[layer].weight]

    def tensors(self) -> dict[str, Tensor]:
        found = dict(self.model.named_parameters())
        found |= {f"{name}.grad": p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        for number, state in enumerate(self.optimizer.state.values()):
            found |= {f"state {number} {key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return found


def reshaped(session: Session) -> None:
    session.model[2].weight.data = torch.ones(5, 7)


def replaced(session: Session) -> None:
    session.model[2].weight = nn.Parameter(torch.ones(4, 6))


def removed(session: Session) -> None:
    session.model[2].weight = None


def on_meta(session: Session) -> None:
    session.model[4].to("meta")


def expanded(session: Session) -> None:
    session.model[2].weight.data = torch.rand(5, 1).expand(5, 6)


def expanded_state(session: Session) -> None:
    session.state()["exp_avg"] = torch.ones(5, 1).expand(5, 6)


def state_of_another_shape(session: Session) -> None:
    session.state(4)["exp_avg_sq"] = torch.ones(3)


def whole_numbers(session: Session) -> None:
    session.state(4)["exp_avg_sq"] = torch.ones(2, 5, dtype=torch.int64)


def no_tensor(session: Session) -> None:
    session.state(4)["exp_avg_sq"] = [1.0]


def foreign(session: Session) -> None:
    session.optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))])


def copied(session: Session) -> None:
    follower = copy.deepcopy(session.model)
    session.plan.track(follower)
    follower[4] = nn.Linear(5, 3)


BROKEN: dict[str, tuple[Callable[[Session], None], type[FxenormError], str]] = {
    "reshaped": (reshaped, BindError, r"2\.weight has shape \(5, 7\) instead of \(5, 6\)"),
    "replaced": (replaced, BindError, r"2\.weight has shape \(4, 6\)"),
    "removed": (removed, BindError, r"2\.weight .*missing"),
    "meta": (on_meta, RescaleError, r"4\.weight.*meta"),
    "expanded": (expanded, RescaleError, r"2\.weight of shape \(5, 6\) has strides \(1, 0\)"),
    "expanded state": (expanded_state, RescaleError, r"exp_avg of 2\.weight .*share memory"),
    "state shape": (state_of_another_shape, OptimizerError, r"exp_avg_sq.*4\.weight.*shape \(3,\)"),
    "state type": (whole_numbers, OptimizerError, r"exp_avg_sq.*4\.weight.*int64"),
    "state list": (no_tensor, OptimizerError, r"exp_avg_sq.*4\.weight.*is a list"),
    "foreign optimizer": (foreign, OptimizerError, "holds none"),
    "copy": (copied, BindError, r"4\.weight has shape \(3, 5\)"),
}
CALLS: dict[str, Callable[[Session], None]] = {
    "step": lambda session: session.plan.step(session.optimizer),
    "balance": lambda session: session.plan.balance(session.optimizer) and None,
    "rescale": lambda session: session.plan.rescale(draw_log_scales(session.plan), session.optimizer),
}


def same_storage(tensor: Tensor, saved: Tensor) -> bool:
    return tensor.is_meta or torch.equal(tensor, saved)


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("again", [False, True], ids=["first", "later"])
def test_what_is_broken_is_met_before_anything_is_written(name: str, method: str, again: bool) -> None:
    """At the first call, and at a later one, which may go by what the first has looked up."""
    session = Session()
    if again:
        session.plan.step(session.optimizer)
        session.train_step()
    damage, error, message = BROKEN[name]
    damage(session)
    saved = {key: tensor.detach().clone() for key, tensor in session.tensors().items()}
    with pytest.raises(error, match=message):
        CALLS[method](session)
    assert all(same_storage(tensor, saved[key]) for key, tensor in session.tensors().items())


@pytest.mark.parametrize("name", ["state shape", "expanded state", "copy"])
def test_in_the_hook_too(name: str) -> None:
    session = Session()
    damage, error, message = BROKEN[name]
    after: dict[str, Tensor] = {}

    def break_it(*_: object) -> None:
        """Runs before the plan's own hook, at the second step."""
        if handle.steps == 1:
            damage(session)
            after.update({key: tensor.detach().clone() for key, tensor in session.tensors().items()})

    session.optimizer.register_step_post_hook(break_it)
    handle = session.plan.attach(session.optimizer, every=2)
    session.train_step()
    with pytest.raises(error, match=message):
        session.train_step()
    assert after and all(torch.equal(tensor, after[key]) for key, tensor in session.tensors().items())


def large_moments(session: Session) -> None:
    session.state(0)["exp_avg_sq"].fill_(1e30)


def in_16_bits(session: Session) -> None:
    session.model.half()
    session.optimizer = torch.optim.SGD(session.model.parameters(), lr=0.1)


OVERFLOWS: dict[str, tuple[Callable[[Session], None], float, float, str]] = {
    "second moments": (large_moments, -18.0, -5.0, r"exp_avg_sq of 0\.weight"),
    "16-bit weights": (in_16_bits, 14.0, 3.0, r"'0\.weight' of type torch\.float16"),
    "no float64": (lambda session: session.model.double() and None, 800.0, 300.0, r"'0\.weight' of type torch\.float64"),
}


@pytest.mark.parametrize("name", OVERFLOWS)
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_rescaling_that_overflows_is_refused_as_a_whole(name: str, backend: str) -> None:
    """Of all entries the last group's alone stay in range; where all do, everything moves."""
    damage, over, within, message = OVERFLOWS[name]
    session = Session()
    damage(session)
    if name == "no float64":
        session.optimizer = torch.optim.SGD(session.model.parameters(), lr=0.1)
    plan = fxenorm.analyze(session.model, INPUTS[0].to(session.model[0].weight), backend=backend)  # type: ignore[arg-type]
    before = {key: value.detach().clone() for key, value in session.tensors().items()}
    for some in (torch.full((plan.num_scales,), over), torch.tensor([over] + [0.0] * (plan.num_scales - 1))):
        with pytest.raises(RescaleError, match=message):
            plan.rescale(some, session.optimizer)
        assert all(torch.equal(before[key], value) for key, value in session.tensors().items())
    plan.rescale(torch.full((plan.num_scales,), within), session.optimizer)
    assert all(value.isfinite().all() for value in session.tensors().values())
    assert not torch.equal(before["0.weight"], session.tensors()["0.weight"])


def test_a_gradient_that_cannot_follow() -> None:
    session = Session()
    saved = {name: parameter.detach().clone() for name, parameter in session.model.named_parameters()}
    session.model[2].bias.grad = torch.ones(1).expand(5)
    with pytest.raises(RescaleError, match=r"gradient of 2\.bias"):
        session.plan.step(session.optimizer, grads=True)
    assert all(torch.equal(parameter, saved[name]) for name, parameter in session.model.named_parameters())
    session.plan.step(session.optimizer)

"""`step` between two backward passes of one optimizer step: said once; never in an ordinary loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import FxenormWarning
from fxenorm.optim import registry

X = torch.randn(8, 6)
WORDS = "no optimizer step has used"


class PlainData(torch.optim.Optimizer):
    """Writes in a way that no counter of writes sees."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad, alpha=-0.01)


@pytest.fixture(autouse=True)
def own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for the class above, gone after the test: others run over all that are registered."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    fxenorm.register_optimizer(PlainData, {})


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "lr 0": lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    "fused": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters),
    "own": PlainData,
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


PLAN = fxenorm.analyze(network(), X)


def loss(model: nn.Module) -> Tensor:
    return model(X).square().mean()


@contextmanager
def watched() -> Iterator[list[Any]]:
    """The warnings of this kind."""
    found: list[Any] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield found
    found += [one for one in seen if WORDS in str(one.message)]


def loops(optimizer: Any, model: nn.Module, plan: Any) -> dict[str, Callable[[], None]]:
    """Ordinary loops: one iteration each."""

    def before(set_to_none: bool) -> None:
        optimizer.zero_grad(set_to_none=set_to_none)
        loss(model).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plan.step(optimizer)

    def after(set_to_none: bool) -> None:
        loss(model).backward()
        optimizer.step()
        plan.step(optimizer)
        optimizer.zero_grad(set_to_none=set_to_none)

    def between() -> None:
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        plan.step(optimizer)

    def twice() -> None:
        before(True)
        plan.step(optimizer)
        plan.step(optimizer, cycles=2)

    def accumulated() -> None:
        optimizer.zero_grad()
        for _ in range(3):
            loss(model).backward()
        optimizer.step()
        plan.step(optimizer)

    def grads() -> None:
        for index in range(2):
            loss(model).backward()
            if index:
                optimizer.step()
                optimizer.zero_grad()
            plan.step(optimizer, grads=True)

    def by_hook() -> None:
        with plan.attach(optimizer):
            for index in range(4):
                loss(model).backward()
                if index % 2:
                    optimizer.step()
                    optimizer.zero_grad()

    return {
        "zero before": lambda: before(True), "zeros before": lambda: before(False), "zero after": lambda: after(True),
        "zeros after": lambda: after(False), "between": between, "twice": twice, "accumulated": accumulated, "grads": grads,
        "by hook": by_hook,
    }  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_alarm_in_ordinary_loops(kind: str) -> None:
    for name in loops(None, network(), None):
        model = network()
        optimizer, plan = OPTIMIZERS[kind](model.parameters()), PLAN.bind(model)
        with watched() as found:
            for _ in range(5):
                loops(optimizer, model, plan)[name]()
        assert not found, name


@pytest.mark.parametrize("micro", [2, 4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_is_said_once(kind: str, micro: int, set_to_none: bool) -> None:
    model = network()
    optimizer, plan = OPTIMIZERS[kind](model.parameters()), PLAN.bind(model)
    with watched() as found:
        for index in range(4 * micro):
            loss(model).backward()
            if index % micro == micro - 1:
                optimizer.step()
                optimizer.zero_grad(set_to_none=set_to_none)
            plan.step(optimizer)
    assert [one.filename for one in found] == [__file__] and issubclass(found[0].category, FxenormWarning)
    assert "plan.attach(optimizer)" in str(found[0].message) and "grads=True" in str(found[0].message)


def test_it_is_said_before_anything_is_written() -> None:
    model = network()
    optimizer, plan = torch.optim.SGD(model.parameters(), lr=0.01), PLAN.bind(model)
    loss(model).backward()
    optimizer.step()
    plan.step(optimizer)
    optimizer.zero_grad()
    with torch.no_grad():
        model[0].weight.mul_(3)  # not a step, but it looks like one: no alarm is better than a false one
    plan.step(optimizer)
    loss(model).backward()
    weights = [parameter.clone() for parameter in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FxenormWarning, match=WORDS):
            plan.step(optimizer)
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", ["SGD", "fused AdamW", "AdamW", "own"])
@pytest.mark.parametrize("clip", [True, False])
def test_no_alarm_where_a_scaler_skips(kind: str, set_to_none: bool, clip: bool) -> None:
    """Nothing is lost then: the gradients are thrown away before the next backward pass."""
    model = network()
    optimizer, plan = OPTIMIZERS[kind](model.parameters()), PLAN.bind(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with watched() as found:
        for index in range(8):
            optimizer.zero_grad(set_to_none=set_to_none)
            scaler.scale(loss(model) * (torch.inf if index in (0, 3, 4) else 1.0)).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            plan.step(optimizer)
    assert not found
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_scaler_and_accumulation() -> None:
    model = network()
    optimizer, plan = torch.optim.AdamW(model.parameters()), PLAN.bind(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with watched() as found:
        for index in range(6):
            scaler.scale(loss(model)).backward()
            if index % 2:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            plan.step(optimizer)
    assert len(found) == 1


def test_several_optimizers() -> None:
    """In turns, with gradients thrown away, nothing is wrong; where one of them accumulates, it is said."""
    for accumulates in (False, True):
        model = network()
        optimizers = [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in (model[0], model[2], model[4])]
        plan = PLAN.bind(model)
        with watched() as found:
            for index in range(9):
                for number, optimizer in enumerate(optimizers):
                    if not accumulates or number != 1 or index % 2 == 0:
                        optimizer.zero_grad()
                loss(model).backward()
                for number, optimizer in enumerate(optimizers):
                    if index % 2 if number == 1 and accumulates else accumulates or index % 3 == number:
                        optimizer.step()
                plan.step(optimizers)
        assert len(found) == accumulates


def test_closures() -> None:
    model = network()
    optimizer, plan = torch.optim.LBFGS(model.parameters(), max_iter=3), PLAN.bind(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(model)
        found.backward()
        return found

    with watched() as found:
        for _ in range(4):
            optimizer.step(closure)
            plan.step(optimizer)
    assert not found


def test_nothing_is_said_of_gradients_that_do_not_move() -> None:
    """The optimizer holds the head alone, which this plan leaves alone."""
    model = network()
    plan = fxenorm.analyze(model, X, exclude=["4.*"])
    assert plan.num_scales == 8
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.01)
    with watched() as found:
        for _ in range(4):
            loss(model).backward()
            plan.step(optimizer)
    assert not found


def test_a_gradient_that_was_set_to_zero_is_not_left() -> None:
    model = network()
    optimizer, plan = torch.optim.SGD(model.parameters(), lr=0.01), PLAN.bind(model)
    with watched() as found:
        for _ in range(4):
            loss(model).backward()
            optimizer.step()
            plan.step(optimizer)
            optimizer.zero_grad(set_to_none=False)
            plan.step(optimizer)
    assert not found


@pytest.mark.parametrize("steps", [1, 2])
def test_accelerate_accumulates(steps: int) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps)
    model = network()
    plan = PLAN.bind(model)
    batches = torch.utils.data.DataLoader(X.repeat(8, 1), batch_size=8)
    model, optimizer, batches = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), batches)
    with watched() as found:
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
                plan.step(optimizer)
                optimizer.zero_grad()
    assert len(found) == (steps > 1)


def test_the_hook_of_a_plan_that_is_gone_is_gone() -> None:
    model = network()
    optimizer, plan = OPTIMIZERS["fused"](model.parameters()), PLAN.bind(model)
    loss(model).backward()
    optimizer.step()
    plan.step(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    del plan
    import gc

    gc.collect()
    assert not optimizer._optimizer_step_post_hooks

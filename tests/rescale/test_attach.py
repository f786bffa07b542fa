"""plan.attach: the optimizer's own hook rescales, at the steps that were asked for and really happened."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import BindError, FxenormWarning, OptimizerError, OptionError

from ..helpers import generator, relative_difference

INPUTS = torch.randn(8, 4, generator=generator(1))
Optimizers = list[torch.optim.Optimizer]


def network(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, 2))


def backward(model: nn.Module, step: int, scaler: torch.amp.GradScaler | None = None, poison: bool = False) -> None:
    """Gradients of a loss that differs from step to step; inf on purpose with `poison`."""
    model.zero_grad()
    loss = (model(INPUTS) - torch.randn(8, 2, generator=generator(100 + step))).square().mean()
    loss = loss * (torch.inf if poison else 1.0)
    (loss if scaler is None else scaler.scale(loss)).backward()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Spy:
    """By hook call, whether what stands between its two hooks moved any weight; the second one is set by `watch`."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.moved: list[bool] = []
        self._before: list[Tensor] = []
        self._model, self._optimizer = model, optimizer
        optimizer.register_step_post_hook(lambda *_: self._before.__setitem__(slice(None), weights(model)))

    def watch(self) -> None:
        self._optimizer.register_step_post_hook(lambda *_: self.moved.append(not same(self._before, weights(self._model))))


@pytest.mark.parametrize(
    ("every", "start", "stop", "due"), [(1, 0, None, 9), (3, 0, None, 3), (2, 3, 8, 2), (1, 4, 6, 2), (1, 0, 0, 0)]
)
def test_period_start_and_stop(every: int, start: int, stop: int | None, due: int) -> None:
    model = network()
    plan = fxenorm.analyze(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    spy = Spy(model, optimizer)
    handle = plan.attach(optimizer, every=every, start=start, stop=stop)
    spy.watch()
    for step in range(9):
        backward(model, step)
        optimizer.step()
    after = [step - start for step in range(1, 10) if stop is None or step <= stop]
    assert [index + 1 for index, moved in enumerate(spy.moved) if moved] == [n + start for n in after if n > 0 and n % every == 0]
    assert sum(spy.moved) == due and handle.steps == 9


def test_it_is_step_after_every_step_and_ends_with_remove() -> None:
    one, other = network(), network()
    plans = [fxenorm.analyze(model) for model in (one, other)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (one, other)]
    with plans[0].attach(optimizers[0]) as handle:
        for step in range(4):
            for model, optimizer in zip((one, other), optimizers, strict=True):
                backward(model, step)
                optimizer.step()
            plans[1].step(optimizers[1])
        assert same(weights(one), weights(other))
    handle.remove()
    before = plans[0].imbalance()
    for model, optimizer in zip((one, other), optimizers, strict=True):
        backward(model, 5)
        optimizer.step()
    assert same(weights(one), weights(other)) and plans[0].imbalance() != before


def run(steps: int, halt: int | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """AdamW with attach; saved and resumed in fresh objects after `halt` steps."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = fxenorm.analyze(model).attach(optimizer, every=3, start=2)
    for step in range(steps):
        if step == halt:
            file = io.BytesIO()
            torch.save([part.state_dict() for part in (model, optimizer, handle)], file)
            model = network()
            nn.init.zeros_(model[0].weight)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            handle = fxenorm.analyze(model).attach(optimizer, every=3, start=2)
            file.seek(0)
            for part, stored in zip((model, optimizer, handle), torch.load(file), strict=True):
                part.load_state_dict(stored)
        backward(model, step)
        optimizer.step()
    return model, optimizer


def test_a_run_that_is_resumed_equals_the_uninterrupted_one() -> None:
    (one, optimizer), (other, resumed) = run(200), run(200, halt=100)
    assert same(weights(one), weights(other))
    for state, twin in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert all(torch.equal(state[key], twin[key]) for key in state)


def test_another_graph_or_other_options_are_not_resumed() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stored = fxenorm.analyze(model).attach(optimizer).state_dict()
    for plan in (fxenorm.analyze(network(7)), fxenorm.analyze(network(), p=1)):
        handle = plan.attach(torch.optim.SGD(plan.model.parameters(), lr=0.1))
        with pytest.raises(BindError, match="another plan"):
            handle.load_state_dict(stored)
        with pytest.raises(BindError, match="no state of an attached plan"):
            handle.load_state_dict({})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_steps_that_a_scaler_skips_do_not_count(fused: bool, every: int) -> None:
    model = network()
    plan = fxenorm.analyze(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    spy = Spy(model, optimizer)
    handle = plan.attach(optimizer, every=every)
    spy.watch()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    poisoned = {0, 3, 4}
    for step in range(9):
        before = weights(model)
        backward(model, step, scaler, poison=step in poisoned)
        scaler.step(optimizer)
        scaler.update()
        assert same(before, weights(model)) == (step in poisoned)
    assert handle.steps == 6 and sum(spy.moved) == 6 // every
    assert all(weight.isfinite().all() for weight in weights(model))
    assert all(value.isfinite().all() for state in optimizer.state.values() for value in state.values())
    again = plan.attach(torch.optim.AdamW(model.parameters()), every=every)
    again.load_state_dict(handle.state_dict())
    assert again.steps == 6


@pytest.mark.parametrize("poisoned", [(), (0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_a_run_that_is_resumed_between_the_steps_of_two_optimizers(fused: bool, poisoned: tuple[int, ...]) -> None:
    """The scaler skips the steps of some of them in the very round that is interrupted."""

    def run(halt: int | None) -> tuple[list[Tensor], int]:
        model = network()
        plan = fxenorm.analyze(model)
        members = [list(model[0].parameters()), [*model[2].parameters(), *model[4].parameters()]]
        optimizers = [torch.optim.SGD(parameters, lr=0.05, fused=fused) for parameters in members]
        handle = plan.attach(optimizers, every=2)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=True)
        for step in range(6):
            backward(model, step, scaler)
            for number, optimizer in enumerate(optimizers):
                if step == 3 and number in poisoned:
                    optimizer.param_groups[0]["params"][0].grad.fill_(torch.inf)
                if step == halt and number == 1:
                    file = io.BytesIO()
                    torch.save(handle.state_dict(), file)
                    file.seek(0)
                    handle.remove()
                    handle = plan.attach(optimizers, every=2)
                    handle.load_state_dict(torch.load(file))
                scaler.step(optimizer)
            scaler.update()
        return weights(model), handle.steps

    (one, steps), (other, resumed) = run(None), run(3)
    assert steps == resumed and (not fused or steps == 6 - (len(poisoned) == 2))
    assert same(one, other)


@pytest.mark.parametrize("fused", [False, True])
def test_state_is_dropped_at_the_steps_that_are_due_only(fused: bool) -> None:
    model = network()
    plan = fxenorm.analyze(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    plan.attach(optimizer, every=2, state="reset")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(6):
        backward(model, step, scaler, poison=step == 1)
        scaler.step(optimizer)
        scaler.update()
        assert (model[0].weight in optimizer.state) == (step not in (2, 4)), step


def test_a_captured_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = fxenorm.analyze(model).attach(optimizer)
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    backward(model, 0)
    with pytest.raises(OptimizerError, match=r"CUDA graph.*plan\.step\(optimizer\) after each replay"):
        optimizer.step()
    assert handle.steps == 0


def halves(model: nn.Sequential) -> Optimizers:
    return [
        torch.optim.AdamW(model[0].parameters(), lr=1e-2),
        torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.1, momentum=0.9),
    ]


def test_of_several_optimizers_the_last_one_to_step_rescales() -> None:
    one, other = network(), network()
    plans = [fxenorm.analyze(model) for model in (one, other)]
    mine, theirs = halves(one), halves(other)
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    handle = plans[0].attach([*mine, stranger])  # one that holds nothing of the model is not waited for
    for step in range(4):
        for model, optimizers in ((one, mine), (other, theirs)):
            backward(model, step)
            for optimizer in optimizers[:: 1 if step % 2 else -1]:
                optimizer.step()
        plans[1].step(theirs)
        # Gradients follow too, where there are several optimizers: another kernel does that, and rounds otherwise.
        torch.testing.assert_close(weights(one), weights(other), rtol=1e-5, atol=1e-7)
    assert handle.steps == 4


def test_gradients_follow_where_another_optimizer_has_yet_to_use_them() -> None:
    model = network()
    plan = fxenorm.analyze(model)
    first, second = halves(model)
    handle = plan.attach([first, second])
    backward(model, 0)
    second.step()  # and the scaler skips the first
    backward(model, 1)
    flow = {name: parameter.grad.detach() * parameter.detach() for name, parameter in model[4].named_parameters()}
    first.step()
    assert handle.steps == 1
    for name, parameter in model[4].named_parameters():  # gradient times weight is what no rescaling changes
        torch.testing.assert_close(parameter.grad * parameter.detach(), flow[name])


def test_what_would_go_wrong_later_is_said_at_once() -> None:
    model = network()
    plan = fxenorm.analyze(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in ({"every": 0}, {"every": 1.5}, {"start": -1}, {"stop": True}, {"cycles": 0}, {"state": "drop"}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            plan.attach(optimizer, **wrong)  # type: ignore[arg-type]
    with pytest.raises(OptimizerError, match="needs an optimizer"):
        plan.attach(None)
    with pytest.raises(OptimizerError, match="holds none"):
        plan.attach(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.warns(FxenormWarning, match="belong to none"):
        plan.attach(torch.optim.SGD(model[0].parameters(), lr=0.1))
    assert not optimizer._optimizer_step_post_hooks

    def in_backward(parameter: Tensor) -> None:
        optimizer.step()

    model[0].weight.register_post_accumulate_grad_hook(in_backward)
    with pytest.raises(OptimizerError, match="backward"):
        plan.attach(optimizer)


def test_groups_and_flags_that_change_are_picked_up() -> None:
    model = network()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([*model[2].parameters(), *model[4].parameters()], lr=1e-2)
    plan = fxenorm.analyze(model)
    plan.attach(optimizer)
    base = weights(model[0])
    for step in range(2):
        backward(model, step)
        optimizer.step()
    assert same(base, weights(model[0])), "what is frozen stays bit for bit"
    for parameter in model[0].parameters():
        parameter.requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.0})
    backward(model, 2)
    optimizer.step()
    assert not same(base, weights(model[0])), "and moves once it is trained, though its learning rate is 0"
    moments = optimizer.state[model[0].weight]["exp_avg"]
    torch.testing.assert_close(moments * model[0].weight, 0.1 * model[0].weight.grad * base[0])


def test_outputs_and_state_are_left_alone_by_the_rescaling_itself() -> None:
    model = network().double()
    plan = fxenorm.analyze(model, torch.randn(2, 4, dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    outputs: list[Tensor] = []
    inputs = INPUTS.double()
    optimizer.register_step_post_hook(lambda *_: outputs.append(model(inputs).detach()))
    plan.attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: outputs.append(model(inputs).detach()))
    for step in range(3):
        model.zero_grad()
        (model(inputs) - step).square().mean().backward()
        optimizer.step()
        assert relative_difference(outputs[-2:-1], outputs[-1:]) <= 1e-10


def test_copies_of_the_optimizer_and_wrappers() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = network()
    plan = fxenorm.analyze(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    spy = Spy(model, optimizer)
    handle = plan.attach(Wrapper(optimizer))
    spy.watch()
    backward(model, 0)
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    backward(model, 1)
    optimizer.step()
    assert spy.moved == [True, True] and handle.steps == 2


def test_a_model_that_is_frozen_as_a_whole_waits() -> None:
    model, head = network(), nn.Linear(2, 2)
    model.requires_grad_(False)
    base = weights(model)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    fxenorm.analyze(model).attach(optimizer)
    for unfrozen in (False, True):
        if unfrozen:
            model.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.parameters()), "lr": 0.0})
        head(model(INPUTS)).square().mean().backward()
        optimizer.step()
        assert same(base, weights(model)) == (not unfrozen)


class Calls(torch.optim.SGD):
    """Does more than its base class, and calls it."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class CallsTwice(Calls):
    """And once more."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("cls", [torch.optim.SGD, Calls, CallsTwice])
def test_a_step_that_calls_the_step_of_its_base_class_counts_once(cls: type[torch.optim.SGD]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = cls(model.parameters(), lr=1e-3)
    plan = fxenorm.analyze(model, torch.randn(2, 6))
    with plan.attach(optimizer, every=2, state="keep") as handle:
        moved = []
        for _ in range(6):
            with torch.no_grad():
                model[0].weight.mul_(2)
            model(torch.randn(2, 6)).sum().backward()
            optimizer.step()
            moved.append(float(plan.imbalance()) < 1e-3)
    assert handle.steps == 6 and moved == [False, True] * 3
    with plan.attach(optimizer, state="keep") as handle:  # an error in a step leaves nothing behind
        with pytest.raises(RuntimeError, match="stop"):
            optimizer.step(lambda: (_ for _ in ()).throw(RuntimeError("stop")))
        optimizer.step()
    assert handle.steps == 1


# ---------------------------------------------------------------- more than one rescaling a step, and states of other plans


def test_a_second_handle_and_a_step_beside_a_handle_are_warned_of() -> None:
    model = network()
    one, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    plan = fxenorm.analyze(model, INPUTS)
    plan.step(one)
    first = plan.attach(one)
    plan.attach(other).remove()
    with pytest.warns(FxenormWarning, match=r"attached to this optimizer already.*plan\.attach rescales once more"):
        second = plan.attach([other, one])
    with pytest.warns(FxenormWarning, match=r"plan\.step rescales once more.*handle\.remove"):
        plan.step(one)
    plan.step(one)  # said once
    for handle in (first, second, second):
        handle.remove()
    again = fxenorm.analyze(model, INPUTS)
    with again.attach(one):
        pass
    again.attach(one)
    again.balance(one)
    backward(model, 0)
    one.step()


def test_the_state_of_another_plan_says_which_options_differ() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fxenorm.analyze(model, INPUTS, p=1, biases="count").attach(optimizer) as handle:
        stored = handle.state_dict()
    same = fxenorm.analyze(network(7), INPUTS, p=1, biases="count")
    with fxenorm.analyze(model, INPUTS).attach(optimizer) as handle:
        with pytest.raises(BindError, match=r"options of fxenorm.analyze were p=1, biases='count', and now are p=2\..*resume="):
            handle.load_state_dict(stored)
        older = {key: value for key, value in stored.items() if key != "options"}
        with pytest.raises(BindError, match="the model's graph, its parameters or the options"):
            handle.load_state_dict(older)
        handle.load_state_dict({**older, "fingerprint": handle.state_dict()["fingerprint"]})
    with (
        same.attach(torch.optim.SGD(same.model.parameters(), lr=0.1)) as handle,
        pytest.raises(BindError, match="options were the same"),
    ):
        handle.load_state_dict(stored)

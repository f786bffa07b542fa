"""One plan for many modules: checkpoints, copies, other types; stored plans; and a model that analyze leaves alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import BindError

from ..helpers import (
    TOLERANCE,
    assert_same_state,
    draw_log_scales,
    generator,
    mlp,
    outputs,
    randomise,
    randomness_off,
    relative_difference,
    soundness_error,
    state_of,
)
from ..process_state import assert_same_process, process_state

INPUTS = (torch.randn(3, 3, 32, 40, dtype=torch.float64, generator=generator(0)),)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Any]:
    """A resnet18 and its plan."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18()
    return model, fxenorm.analyze(model, modes="eval")


def network(width: int = 5) -> nn.Sequential:
    """Two layers and a norm."""
    return mlp(4, width, 3, between=lambda width: [nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)])


def test_one_plan_balances_three_checkpoints(resnet: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original, plan = resnet
    forbid_tracing(monkeypatch)
    untouched = state_of(original)
    norms = set()
    for seed in range(3):
        checkpoint = randomise(copy.deepcopy(original).double(), INPUTS, seed=seed)
        bound = plan.bind(checkpoint)
        assert bound.num_scales == plan.num_scales == 2880 and bound.fingerprint == plan.fingerprint
        before, norm = outputs(checkpoint, INPUTS), bound.norm().item()
        assert bound.balance().converged
        assert bound.imbalance().item() <= 1e-6 and bound.norm().item() < norm
        assert relative_difference(before, outputs(checkpoint, INPUTS)) <= TOLERANCE
        norms.add(round(bound.norm().item(), 6))
    assert len(norms) == 3, "three checkpoints, three answers"
    assert_same_state(original, untouched)


def forbid_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any further analysis of a graph fail."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a stored plan must need no trace and no analysis")

    monkeypatch.setattr("torch.export.export", refuse)
    monkeypatch.setattr("fxenorm.plan.analyze.trace_model", refuse)
    monkeypatch.setattr("fxenorm.plan.analyze.find_symmetry", refuse)


def test_control_for_the_ban_on_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_tracing(monkeypatch)
    with pytest.raises(AssertionError, match="no trace"):
        fxenorm.analyze(network(), torch.randn(2, 4))


def test_stored_plan_is_the_same_plan(resnet: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original, plan = resnet
    text = json.dumps(plan.to_dict())
    forbid_tracing(monkeypatch)
    model = randomise(copy.deepcopy(original).double(), INPUTS, seed=5)
    other = copy.deepcopy(model)
    stored = fxenorm.Plan.from_dict(json.loads(text), model)
    assert stored.num_scales == plan.num_scales and stored.fingerprint == plan.fingerprint
    assert stored.modes == plan.modes and stored.exact == plan.exact and stored.tracer == plan.tracer
    assert [(pair.producer, pair.consumer, pair.channels) for pair in stored.pairs] == [
        (pair.producer, pair.consumer, pair.channels) for pair in plan.pairs
    ]
    assert [group.variables for group in stored.groups] == [group.variables for group in plan.groups]
    before = outputs(model, INPUTS)
    stored.step(cycles=2)
    plan.bind(other).step(cycles=2)
    for name, value in state_of(model).items():
        assert torch.equal(value, state_of(other)[name]), name
    assert relative_difference(before, outputs(model, INPUTS)) <= TOLERANCE
    assert json.dumps(stored.to_dict()) == text


@pytest.mark.parametrize(
    "options", [{"p": 1.0}, {"p": float("inf")}, {"c": 1.3}, {"c": "adaptive"}, {"c": {"0": 2.0}}, {"biases": "count"}]
)
def test_stored_plan_keeps_its_options(options: dict[str, Any]) -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double())
    other = copy.deepcopy(model)
    plan = fxenorm.analyze(model, torch.randn(2, 4, dtype=torch.float64), **options)
    stored = fxenorm.Plan.from_dict(json.loads(json.dumps(plan.to_dict())), other)
    plan.step()
    stored.step()
    assert_same_state(other, state_of(model))


def test_plan_survives_to_and_load_state_dict() -> None:
    inputs = (torch.randn(6, 4, dtype=torch.float64, generator=generator(1)),)
    model = randomness_off(network())
    plan = fxenorm.analyze(model, inputs[0].float())
    randomise(model.double(), inputs, seed=1)
    assert soundness_error(model, plan, inputs) <= TOLERANCE
    checkpoint = copy.deepcopy(randomise(copy.deepcopy(model), inputs, seed=2).state_dict())
    model.load_state_dict(checkpoint, assign=True)
    before = outputs(model, inputs)
    norm = plan.norm().item()
    plan.balance()
    assert plan.norm().item() < norm
    assert relative_difference(before, outputs(model, inputs)) <= TOLERANCE


def test_plan_of_a_meta_model_is_bound_to_real_weights() -> None:
    with torch.device("meta"):
        empty = network()
    plan = fxenorm.analyze(empty, torch.empty(2, 4, device="meta"))
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    inputs = (torch.randn(6, 4, dtype=torch.float64),)
    model = randomise(randomness_off(network().double()), inputs)
    assert plan.num_scales == 5
    assert soundness_error(model, plan.bind(model), inputs, "train") <= TOLERANCE


def test_wrapped_models_are_looked_through() -> None:
    inputs = (torch.randn(6, 4, dtype=torch.float64),)
    model = randomise(randomness_off(network().double()), inputs)
    plan = fxenorm.analyze(nn.DataParallel(model), inputs)
    assert set(plan.exponents) == {"1.weight", "1.bias", "4.weight"}
    assert soundness_error(model, plan, inputs) <= TOLERANCE
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert plan.bind(averaged).num_scales == 5


MISFITS = {
    "another width": (lambda: network(7), "1.weight"),
    "a missing layer": (lambda: network()[:4], "4.weight"),
    "another name": (lambda: nn.Sequential(nn.Sequential(network())), "1.weight"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_misfit_is_named_and_nothing_is_changed(misfit: str) -> None:
    build, name = MISFITS[misfit]
    plan = fxenorm.analyze(network(), torch.randn(2, 4))
    other = build()
    state = state_of(other)
    with pytest.raises(BindError, match=name.replace(".", r"\.")):
        plan.bind(other)
    with pytest.raises(BindError):
        fxenorm.Plan.from_dict(plan.to_dict(), other)
    assert_same_state(other, state)


@pytest.mark.parametrize("stored", [{}, {"format": 999}, {"nonsense": 1}, "text", None])
def test_what_is_not_a_stored_plan_is_refused(stored: Any) -> None:
    with pytest.raises(BindError):
        fxenorm.Plan.from_dict(stored, network())


def test_analyze_changes_nothing_in_the_model_and_the_process() -> None:
    model = network()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 5)
    hook_calls: list[int] = []
    model[0].register_forward_hook(lambda *_: None)
    state, flags = state_of(model), [module.training for module in model.modules()]
    identities = {name: (id(p), p.data_ptr(), p.requires_grad, p._version) for name, p in model.named_parameters()}
    attributes = [set(vars(module)) for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    process = process_state()
    plan = fxenorm.analyze(model, torch.randn(2, 4, generator=generator(0)))
    assert plan.num_scales == 5
    assert_same_process(process)
    assert_same_state(model, state)
    assert [module.training for module in model.modules()] == flags
    assert {name: (id(p), p.data_ptr(), p.requires_grad, p._version) for name, p in model.named_parameters()} == identities
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()] == hooks
    assert torch.equal(model[4].weight.grad, torch.ones(3, 5)) and model[0].weight.grad is None
    assert not hook_calls


def test_analyze_restores_the_model_and_the_process_when_it_fails() -> None:
    model = network()
    model[1].eval()
    state, flags, process = state_of(model), [module.training for module in model.modules()], process_state()
    with pytest.raises(fxenorm.FxenormError):
        fxenorm.analyze(model, torch.ones(2, 17))
    assert_same_state(model, state)
    assert [module.training for module in model.modules()] == flags
    assert_same_process(process)


def test_plans_do_not_share_anything_that_changes() -> None:
    inputs = (torch.randn(6, 4, dtype=torch.float64),)
    models = [randomise(randomness_off(network().double()), inputs, seed=seed) for seed in (0, 1)]
    plan = fxenorm.analyze(models[0], inputs)
    plans = [plan, plan.bind(models[1])]
    state = state_of(models[0])
    plans[1].rescale(draw_log_scales(plan))
    assert_same_state(models[0], state)
    assert soundness_error(models[1], plans[1], inputs) <= TOLERANCE

"""Parameters that the model adds a number to, as the 1 + w of Gemma's norms: they move as a whole, and everything that stands
for them does."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

import fxenorm
from fxenorm.errors import BindError

from ..helpers import assert_finite, draw_log_scales, generator, outputs, randomise, relative_difference, state_of
from ..optim.test_optim_contracts import CASES as OPTIMIZERS
from ..zoo import CASES
from ..zoo_base import Net

TOKENS = CASES["gemma"].inputs()
VECTORS = (torch.randn(6, 4, dtype=torch.float64, generator=generator(1)),)
BACKENDS = ["eager", "compiled"]


def gemma() -> nn.Module:
    """A small Gemma whose weights are far from balanced."""
    model = randomise(CASES["gemma"].build().double(), seed=3)
    with torch.no_grad():
        model.up.weight.mul_(5)
        model.first.mul_(3)
    return model


def gated(offset: float) -> nn.Module:
    """A matrix and a gain, both as `offset` + w (at 0: as they are); the same function whatever the offset."""
    model = Net(
        lambda m, x: m.b(F.relu(F.linear(m.a(x), m.w + offset if offset else m.w)) * (m.g + offset if offset else m.g)),
        a=nn.Linear(4, 5),
        w=nn.Parameter(torch.randn(6, 5)),
        g=nn.Parameter(torch.randn(6)),
        b=nn.Linear(6, 3),
    )
    model = randomise(model.double(), seed=7)
    with torch.no_grad():
        for parameter in (model.w, model.g):
            parameter.sub_(offset)
    return model


@cache
def gated_plan(offset: float) -> fxenorm.Plan:
    """The plan of `gated`."""
    return fxenorm.analyze(gated(offset), *VECTORS)


def norm_by_definition(model: nn.Module, plan: fxenorm.Plan, p: float) -> float:
    """Of the weights and gains that move, each with what is added to it."""
    parts = [
        (plan.offsets.get(name, 0.0) + parameter.detach()).abs().reshape(-1)
        for name, parameter in model.named_parameters()
        if name in plan.exponents and "bias" not in name
    ]
    return float(torch.cat(parts).norm(p))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, 12.0, math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_norm_is_that_of_what_multiplies_and_every_call_lowers_it(backend: str, p: float) -> None:
    model = gemma()
    plan = fxenorm.analyze(model, *TOKENS, backend=backend, p=p)
    before, norms = outputs(model, TOKENS), [float(plan.norm())]
    assert norms[0] == pytest.approx(norm_by_definition(model, plan, p), rel=1e-12)
    calls: list[Callable[[], Any]] = [plan.step, plan.step, lambda: plan.step(cycles=3), plan.balance]
    for call in calls:
        first = model.first.detach().clone()
        call()
        norms.append(float(plan.norm()))
        assert not torch.equal(first, model.first)
    assert all(new <= old * (1 + 1e-12) for old, new in itertools.pairwise(norms)) and norms[-1] < 0.99 * norms[0]
    assert norms[-1] == pytest.approx(norm_by_definition(model, plan, p), rel=1e-12)
    assert relative_difference(before, outputs(model, TOKENS)) < 1e-12
    assert float(plan.imbalance()) < 1e-6 or math.isinf(p)


@pytest.mark.parametrize("cycles", [1, 3])
def test_executors_agree(cycles: int) -> None:
    models = [gemma() for _ in BACKENDS]
    for model, backend in zip(models, BACKENDS, strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        plan = fxenorm.analyze(model, *TOKENS, backend=backend)
        for _ in range(3):
            optimizer.zero_grad()
            model(*TOKENS).square().mean().backward()
            optimizer.step()
            plan.step(optimizer, cycles=cycles)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_balance_finds_one_answer_and_can_be_undone() -> None:
    model = gemma()
    plan = fxenorm.analyze(model, *TOKENS)
    start = state_of(model)
    result = plan.balance()
    assert result.converged and not result.held
    balanced = state_of(model)
    plan.rescale(-result.log_scales)
    for name, value in state_of(model).items():
        torch.testing.assert_close(value, start[name], rtol=1e-12, atol=1e-13)
    plan.rescale(draw_log_scales(plan))
    plan.balance(tol=1e-9)
    for name, value in state_of(model).items():
        torch.testing.assert_close(value, balanced[name], rtol=1e-5, atol=1e-6)


def _made(cls: type[Optimizer], settings: dict[str, Any], model: nn.Module) -> Optimizer:
    """An optimizer that takes the same steps wherever zero lies."""
    decays = {"weight_decay": 0, "lambd": 0} if cls.__name__ != "LBFGS" else {}
    settings = {**{key: 0 for key in decays if key in inspect.signature(cls).parameters}, **settings}
    if cls.__name__ in ("Adafactor", "Muon"):
        settings["lr"] = 0.0  # steps that grow with the weights, or are worked out in 16 bits
    members = [p for p in model.parameters() if p.ndim == 2 or cls.__name__ != "Muon"]
    return cls(members, **settings)


def _train(model: nn.Module, optimizer: Optimizer) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(*VECTORS).square().mean()
        loss.backward()
        for parameter in model.parameters() if isinstance(optimizer, torch.optim.SparseAdam) else ():
            parameter.grad = parameter.grad.to_sparse()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


POSITIONS = {"ax", "z"}
"""Keys of state that holds values of the parameter, in torch's classes and in those of the tests."""


@pytest.mark.parametrize(
    ("cls", "settings"),
    [case for case in OPTIMIZERS if not {"weight_decay", "maximize"} & case.values[1].keys()],
)
@pytest.mark.filterwarnings("ignore:these parameters are rescaled but belong to none")
def test_training_with_1_plus_w_is_training_with_u(cls: type[Optimizer], settings: dict[str, Any]) -> None:
    """The twin has u = 1 + w as its parameter: weights and state stay equal, but for the 1, through steps and rescalings."""
    runs = []
    for offset in (1.0, 0.0):
        model = gated(offset)
        plan, optimizer = gated_plan(offset).bind(model), _made(cls, settings, model)
        assert plan.offsets == ({"w": 1.0, "g": 1.0} if offset else {}) and plan.num_scales == 5 + 6 + 6
        for round_ in range(3):
            for _ in range(2):
                _train(model, optimizer)
            plan.rescale(0.1 * draw_log_scales(plan, seed=round_), optimizer)
        runs.append((model, optimizer))
    (ours, own_optimizer), (twin, other_optimizer) = runs
    for (name, one), other in zip(ours.named_parameters(), twin.parameters(), strict=True):
        added = float(name in ("w", "g"))
        torch.testing.assert_close(one + added, other, rtol=1e-8, atol=1e-10)
        state, wanted = own_optimizer.state.get(one, {}), other_optimizer.state.get(other, {})
        assert state.keys() == wanted.keys()
        for key, value in state.items():
            values = value if isinstance(value, list) else [value]
            expected = wanted[key] if isinstance(value, list) else [wanted[key]]
            for left, right in zip(values, expected, strict=True):
                if isinstance(left, Tensor):
                    left = left + added if key in POSITIONS else left
                    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9 * float(right.abs().max()), msg=key)


def test_gradients_follow() -> None:
    model = gated(1.0)
    plan = fxenorm.analyze(model, *VECTORS)
    model(*VECTORS).square().sum().backward()
    plan.step(grads=True, cycles=2)
    moved = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(*VECTORS).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(moved[name], parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["average", "dict", "list", "bound"])
def test_copies_follow(kind: str) -> None:
    model = gemma()
    plan = fxenorm.analyze(model, *TOKENS)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    before = outputs(other, TOKENS)
    if kind == "bound":
        plan.bind(other).balance()
    else:
        average = AveragedModel(other)
        made = {"average": average, "dict": dict(average.module.named_parameters()), "list": list(average.module.parameters())}
        plan.track(made[kind])
        plan.step()
        plan.rescale(draw_log_scales(plan))
        plan.balance()
        other = average.module
    assert relative_difference(before, outputs(other, TOKENS)) < 1e-12


def test_a_frozen_parameter_stays_and_the_others_keep_the_function() -> None:
    model = gemma()
    plan = fxenorm.analyze(model, *TOKENS)
    model.first.requires_grad_(False)
    first, before = model.first.detach().clone(), outputs(model, TOKENS)
    plan.step()
    plan.balance()
    assert torch.equal(first, model.first) and relative_difference(before, outputs(model, TOKENS)) < 1e-12
    assert {item.reason.split(":")[0] for item in plan.held} == {"requires_grad=False"}


# --- types of 16 bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "scales"), [(torch.bfloat16, "auto"), (torch.float16, "auto"), (torch.bfloat16, "pow2"), (torch.float32, "pow2")]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_that_are_to_stay_bit_identical_do(dtype: torch.dtype, scales: Any, backend: str) -> None:
    """1 + w is rounded where w moves by a power of two: the scales that move it are held, the others go on."""
    model = gemma().to(dtype)
    inputs = (TOKENS[0].to(dtype),)
    plan = fxenorm.analyze(model, *inputs, scales=scales, backend=backend)
    before, start = outputs(model, inputs), state_of(model)
    for _ in range(4):
        plan.step(cycles=2)
    plan.balance()
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(model, inputs), strict=True))
    moved = {name for name, value in state_of(model).items() if not torch.equal(value, start[name])}
    assert "up.weight" in moved and not {"first", "second"} & moved
    held = {variable for item in plan.held if item.reason.startswith("powers of two") for variable in item.variables}
    assert held == {int(i) for name in plan.offsets for _, ids in plan.exponents[name] for i in ids.reshape(-1)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_move_where_they_are_rewritten_from_wider_ones_or_asked_to(dtype: torch.dtype) -> None:
    for choice in ("masters", "exact"):
        model = gemma().float()
        masters = copy.deepcopy(model)
        model.to(dtype)
        plan = fxenorm.analyze(model, TOKENS[0].to(dtype), scales="exact" if choice == "exact" else "auto")
        if choice == "masters":
            plan.track(masters, master=True)
        before = outputs(masters, (TOKENS[0].float(),))
        first = model.first.detach().clone()
        plan.step()
        assert not torch.equal(first, model.first) and not plan.held
        assert_finite(model)
        if choice == "masters":
            assert relative_difference(before, outputs(masters, (TOKENS[0].float(),))) < 1e-5
            torch.testing.assert_close(model.first, masters.first.to(dtype), rtol=0.02, atol=0.02)


# --- stored, printed, verified -------------------------------------------------------------------------------------------


def test_stored_plans_keep_them() -> None:
    model = gemma()
    plan = fxenorm.analyze(model, *TOKENS)
    stored = json.loads(json.dumps(plan.to_dict()))
    again = fxenorm.Plan.from_dict(stored, model)
    assert again.offsets == plan.offsets == {"first": 1.0, "second": 1.0} and again.fingerprint == plan.fingerprint
    before = outputs(model, TOKENS)
    again.balance()
    assert relative_difference(before, outputs(model, TOKENS)) < 1e-12
    for damage in ({"first": math.nan}, {"first": 0.0}, {"nobody": 1.0}, {"first": "one"}):
        with pytest.raises(BindError, match="damaged"):
            fxenorm.Plan.from_dict({**stored, "symmetry": {**stored["symmetry"], "offsets": damage}}, model)


def test_a_plan_with_and_without_them_differ() -> None:
    plans = [gated_plan(offset) for offset in (1.0, 0.0, 2.0)]
    assert len({plan.fingerprint for plan in plans}) == 3 and "offsets" not in plans[1].to_dict()["symmetry"]
    assert "2 tensors move as a number plus themselves" in str(plans[0]) and "plus themselves" not in str(plans[1])


def test_verify_sees_one_that_is_forgotten() -> None:
    model = gemma()
    plan = fxenorm.analyze(model, *TOKENS)
    assert plan.verify(*TOKENS)
    stored = {**plan.to_dict(), "fingerprint": None}  # which would tell at once
    for wrong in ({"first": 1.0}, {"first": 1.0, "second": -1.0}):
        damaged = fxenorm.Plan.from_dict({**stored, "symmetry": {**stored["symmetry"], "offsets": wrong}}, model)
        result = damaged.verify(*TOKENS)
        assert not result and result.at_fault
        guilty = {variable for group in plan.groups if group.name in result.at_fault for variable in group.variables}
        assert guilty == {int(i) for _, ids in plan.exponents["second"] for i in ids.reshape(-1)}


def test_a_conflict_is_told() -> None:
    plan = fxenorm.analyze(*(CASES["norm_read_with_and_without"].build().double(), *VECTORS))
    assert any("moves as 1 + w elsewhere and as w here" in barrier.reason for barrier in plan.barriers)


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interruption_leaves_all_moved_or_nothing(backend: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gemma()
    plan = fxenorm.analyze(model, *TOKENS, backend=backend)
    before, copy_, count = outputs(model, TOKENS), Tensor.copy_, itertools.count(1)

    def stop(self: Tensor, *args: Any, **options: Any) -> Tensor:
        if self.shape == (4,) and next(count) == place:
            raise KeyboardInterrupt
        return copy_(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "copy_", stop)
        with pytest.raises(KeyboardInterrupt):
            plan.step()
    assert relative_difference(before, outputs(model, TOKENS)) < 1e-12
    plan.step()
    assert relative_difference(before, outputs(model, TOKENS)) < 1e-12

"""Through a plan, the state of every registered optimizer follows the weights that it belongs to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fxenorm
from fxenorm.errors import FxenormWarning, OptimizerError
from fxenorm.optim.registry import Steps, registered

from ..helpers import draw_log_scales, generator, randomise

TORCH = sorted((cls for cls in registered() if cls.__module__.startswith("torch.")), key=lambda cls: cls.__name__)
IDS = torch.randint(0, 7, (6, 5), generator=generator(1))


class Net(nn.Module):
    """An embedding, convolutions and linear layers."""

    def __init__(self, matrices: bool, sparse: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, sparse=sparse)
        self.first = nn.Identity() if matrices else nn.Conv1d(4, 6, 3)
        self.second = nn.Linear(4 if matrices else 6, 5, bias=not matrices)
        self.last = nn.Linear(5, 2, bias=not matrices)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.first(self.embedding(ids).transpose(1, 2))).transpose(1, 2)
        return self.last(torch.relu(self.second(hidden)).mean(1))


def build(cls: type[Optimizer], **settings: Any) -> tuple[nn.Module, fxenorm.Plan, list[Optimizer]]:
    """A network in float64 after two steps of the class (and SGD for what SparseAdam does not take)."""
    model = randomise(Net(cls.__name__ == "Muon", cls.__name__ == "SparseAdam").double(), seed=3)
    plan = fxenorm.analyze(model, IDS)
    mine = [p for p in model.parameters() if cls.__name__ != "SparseAdam" or p is model.embedding.weight]
    rest = [p for p in model.parameters() if all(p is not other for other in mine)]
    optimizers: list[Optimizer] = [cls(mine, **settings), *([torch.optim.SGD(rest, lr=1e-2, momentum=0.9)] if rest else [])]

    def closure() -> Tensor:
        model.zero_grad()
        loss = (model(IDS) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step(closure)
    return model, plan, optimizers


def expected(optimizer: Optimizer, parameter: Tensor, factor: Tensor, before: dict[str, Any]) -> dict[str, Tensor]:
    """By key, the state tensors of the parameter's shape after a rescaling."""
    group = optimizer.param_groups[0]
    powers = registered()[type(optimizer)].follows(before, group)
    same_shape = {key: value for key, value in before.items() if isinstance(value, Tensor) and value.shape == parameter.shape}
    numbers = {key: power.power if isinstance(power, Steps) else power for key, power in powers.items()}
    return {key: value * factor ** numbers.get(key, 0) for key, value in same_shape.items()}


@pytest.mark.parametrize("cls", TORCH, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("method", ["rescale", "step", "balance"])
def test_every_optimizer_follows(cls: type[Optimizer], method: str) -> None:
    model, plan, optimizers = build(cls)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    states = [{p: copy.deepcopy(state) for p, state in optimizer.state.items()} for optimizer in optimizers]
    if method == "rescale":
        plan.rescale(draw_log_scales(plan), optimizers)
    else:
        getattr(plan, method)(optimizers)
    factors = {parameter: parameter.detach() / weights[name] for name, parameter in model.named_parameters()}
    assert any((factor - 1).abs().max() > 1e-3 for factor in factors.values())
    for optimizer, before in zip(optimizers, states, strict=True):
        for parameter, state in before.items():
            if cls is torch.optim.LBFGS:
                flat = torch.cat([factors[p].reshape(-1) for p in model.parameters()])
                now = optimizer.state[parameter]
                torch.testing.assert_close(now["d"], state["d"] * flat, rtol=1e-10, atol=0)
                for old, new in zip(state["old_dirs"], now["old_dirs"], strict=True):
                    torch.testing.assert_close(new, old / flat, rtol=1e-10, atol=0)
                continue
            if "row_var" in state:
                old, new = (
                    s["row_var"] @ s["col_var"] / s["row_var"].mean(-2, keepdim=True) for s in (state, optimizer.state[parameter])
                )
                torch.testing.assert_close(new, old / factors[parameter] ** 2, rtol=1e-10, atol=0)
                continue
            for key, value in expected(optimizer, parameter, factors[parameter], state).items():
                torch.testing.assert_close(optimizer.state[parameter][key], value, rtol=1e-10, atol=0, msg=key)


@pytest.mark.parametrize("method", ["step", "balance"])
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.Adafactor, torch.optim.LBFGS], ids=lambda cls: cls.__name__)
def test_state_of_another_form_is_met_before_anything_is_written(cls: type[Optimizer], method: str) -> None:
    model, plan, optimizers = build(cls)
    state = optimizers[0].state[next(iter(optimizers[0].state))]
    key = next(key for key in ("exp_avg", "col_var", "prev_flat_grad") if key in state)
    state[key] = torch.ones(3, 1)
    weights, history = copy.deepcopy(model.state_dict()), copy.deepcopy(state)
    with pytest.raises(OptimizerError, match=rf"{key}.*nothing was rescaled"):
        getattr(plan, method)(optimizers)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(history[name], value) for name, value in state.items() if isinstance(value, Tensor))


def test_an_unknown_optimizer_works_with_a_choice_and_with_a_rule() -> None:
    class Unknown(torch.optim.Optimizer):
        """Keeps a sum of gradients."""

        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            with torch.enable_grad():
                closure()
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter].setdefault("total", torch.zeros_like(parameter)).add_(parameter.grad)

    model, plan, optimizers = build(Unknown)
    weight = model.second.weight
    with pytest.raises(OptimizerError, match=r"Unknown.*state='reset'.*state='keep'"):
        plan.step(optimizers)
    kept = optimizers[0].state[weight]["total"].clone()
    plan.step(optimizers, state="keep")
    assert torch.equal(kept, optimizers[0].state[weight]["total"])
    fxenorm.register_optimizer(Unknown, {"total": -1})
    product = kept * weight.detach()
    plan.step(optimizers)
    torch.testing.assert_close(optimizers[0].state[weight]["total"] * weight.detach(), product)
    plan.step(optimizers, state="reset")
    assert weight not in optimizers[0].state


def test_timm_lion_by_registration() -> None:
    timm = pytest.importorskip("timm.optim")
    fxenorm.register_optimizer(timm.Lion, {"exp_avg": -1})
    model, plan, optimizers = build(timm.Lion, lr=1e-3)
    products = {p: optimizers[0].state[p]["exp_avg"] * p.detach() for p in model.parameters()}
    plan.rescale(draw_log_scales(plan), optimizers)
    for parameter, product in products.items():
        torch.testing.assert_close(optimizers[0].state[parameter]["exp_avg"] * parameter.detach(), product)


def test_groups_with_options_of_their_own_and_parameters_without_state() -> None:
    model = randomise(Net(False, False).double(), seed=3)
    plan = fxenorm.analyze(model, IDS)
    groups = [
        {"params": [model.embedding.weight], "momentum": 0.0},
        {"params": list(model.first.parameters()), "nesterov": True, "weight_decay": 0.0},
        {"params": [*model.second.parameters(), *model.last.parameters()], "maximize": True, "lr": 1e-3},
    ]
    optimizer = torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
    model(IDS).square().mean().backward()
    model.second.bias.grad = None
    optimizer.step()
    held = {p: state["momentum_buffer"] for p, state in optimizer.state.items() if state.get("momentum_buffer") is not None}
    assert len(held) == len(list(model.parameters())) - 2, "neither for momentum 0 nor without a gradient"
    products = {parameter: buffer * parameter.detach() for parameter, buffer in held.items()}
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plan.step(optimizer)
    assert not any(torch.equal(weights[name], model.get_parameter(name)) for name in plan.exponents), "all of them move"
    for parameter, product in products.items():
        torch.testing.assert_close(held[parameter] * parameter.detach(), product, rtol=1e-10, atol=0)


def test_what_no_optimizer_holds_is_listed_once() -> None:
    model, plan, _ = build(torch.optim.Adam)
    optimizer = torch.optim.Adam(model.second.parameters())
    with pytest.warns(FxenormWarning, match=r"embedding\.weight.*first\.weight.*last\.weight") as seen:
        plan.step(optimizer)
        plan.step(optimizer)
        plan.balance(optimizer)
    assert [warning.filename for warning in seen] == [__file__]
    plan.step()
    with pytest.raises(OptimizerError, match="none of the model's parameters"):
        plan.step(torch.optim.SGD(build(torch.optim.Adam)[0].parameters(), lr=0.1))


@pytest.mark.parametrize("what", ["a frozen parameter", "a moved buffer", "another parameter"])
def test_what_an_optimizer_has_to_hold(what: str) -> None:
    """Neither frozen parameters, as under LoRA, nor buffers: only what is trained and moved is missed, and named."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    plan = fxenorm.analyze(model, torch.randn(8, 4), batchnorm="frozen", modes="eval")
    assert {"1.running_mean", "0.weight"} <= set(plan.exponents)
    model[0].weight.requires_grad_(what != "a frozen parameter")
    held = [p for name, p in model.named_parameters() if p.requires_grad and (what != "another parameter" or name != "3.weight")]
    optimizer = torch.optim.SGD(held, lr=1e-2, momentum=0.9)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    if what == "another parameter":
        with pytest.warns(FxenormWarning, match=r"belong to none of the optimizers given: 3\.weight\. "):
            plan.step(optimizer)
    else:
        plan.step(optimizer)


@pytest.mark.parametrize("state", ["reexpress", "reset", "keep"])
def test_the_history_of_lbfgs_when_its_first_parameter_does_not_move(state: Any) -> None:
    """Torch keeps it with the first parameter; here that is none of the model's, and one without variables stands between."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator(1))
    plan = fxenorm.analyze(model, x)
    stranger = nn.Parameter(torch.ones(3, dtype=torch.float64))
    members = [stranger, *model[0].parameters(), model[4].bias, *model[2].parameters(), model[4].weight]
    optimizer = torch.optim.LBFGS(members, lr=0.1, max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - stranger.sum()).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    before, weights = copy.deepcopy(optimizer.state[stranger]), [member.detach().clone() for member in members]
    assert len(before["old_stps"]) > 1
    plan.rescale(draw_log_scales(plan), optimizer, state=state)
    moved = [not torch.equal(member, weight) for member, weight in zip(members, weights, strict=True)]
    assert moved == [False, True, True, False, True, True, True]
    if state == "reset":
        assert not any(optimizer.state.values())
        return
    ratios = [member.detach() / weight for member, weight in zip(members, weights, strict=True)]
    flat = torch.cat([ratio.reshape(-1) for ratio in ratios]) if state == "reexpress" else 1.0
    now = optimizer.state[stranger]
    for key, factor in {"d": flat, "old_stps": flat, "old_dirs": 1 / flat, "prev_flat_grad": 1 / flat}.items():
        for old, new in zip(
            *([value[key]] if key in ("d", "prev_flat_grad") else value[key] for value in (before, now)), strict=True
        ):
            torch.testing.assert_close(new, old * factor, rtol=1e-10, atol=0)


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_gradients_and_state_follow_weights_that_lie_in_another_order(backend: Any) -> None:
    """A weight that has become channels_last has gradients and moments that have not."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)]
    model = nn.Sequential(*layers).double()
    x = torch.randn(6, 3, 6, 6, dtype=torch.float64, generator=generator(1))
    plan = fxenorm.analyze(model, x, backend=backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def products() -> list[Tensor]:
        """What no rescaling changes."""
        found = []
        for parameter, state in optimizer.state.items():
            weight = parameter.detach()
            found += [parameter.grad * weight, state["exp_avg"] * weight, state["exp_avg_sq"] * weight**2]
        return found

    for number, order in enumerate((torch.contiguous_format, torch.channels_last, torch.channels_last, torch.contiguous_format)):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for layer in (model[0], model[2]):
            layer.weight.data = layer.weight.data.to(memory_format=order)
            assert layer.weight.is_contiguous(memory_format=order) and (number != 1 or layer.weight.grad.is_contiguous())
        before, weight = products(), model[2].weight.detach().clone()
        plan.step(optimizer, grads=True)
        assert not torch.equal(weight, model[2].weight)
        for old, new in zip(before, products(), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-10, atol=0)


@pytest.mark.parametrize("cls", TORCH, ids=lambda cls: cls.__name__)
def test_it_goes_on_following_step_after_step(cls: type[Optimizer]) -> None:
    """What one call looked up must not be taken for what the next one has to move."""
    model, plan, optimizers = build(cls, **({"lr": 1e-2, "momentum": 0.9} if cls is torch.optim.SGD else {}))

    def closure() -> Tensor:
        model.zero_grad()
        loss = (model(IDS) - 1).square().mean()
        loss.backward()
        return loss

    for step in range(4):
        for optimizer in optimizers:
            optimizer.step(closure)
        weights = {parameter: parameter.detach().clone() for parameter in model.parameters()}
        before = {parameter: copy.deepcopy(state) for parameter, state in optimizers[0].state.items()}
        follower = copy.deepcopy(model)
        tracked = plan.track(follower) if step == 2 else None
        plan.step(optimizers)
        if tracked is not None:
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), follower.parameters(), strict=True))
            tracked.remove()
        factors = {parameter: parameter.detach() / weight for parameter, weight in weights.items()}
        if cls is torch.optim.LBFGS:
            flat = torch.cat([factors[p].reshape(-1) for p in model.parameters()])
            for first, state in before.items():
                for old, new in zip(state["old_stps"], optimizers[0].state[first]["old_stps"], strict=True):
                    torch.testing.assert_close(new, old * flat, rtol=1e-10, atol=0)
            continue
        for parameter, state in before.items():
            now = optimizers[0].state[parameter]
            if "row_var" in state:
                old, new = (s["row_var"] @ s["col_var"] / s["row_var"].mean(-2, keepdim=True) for s in (state, now))
                torch.testing.assert_close(new, old / factors[parameter] ** 2, rtol=1e-10, atol=0)
                continue
            for key, value in expected(optimizers[0], parameter, factors[parameter], state).items():
                torch.testing.assert_close(now[key], value, rtol=1e-10, atol=0, msg=key)


class TwoBuffers(Optimizer):
    """Keeps a sum of gradients as "m" and a second one as "n"."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state.setdefault("m", torch.zeros_like(parameter)).add_(parameter.grad)
                state.setdefault("n", torch.ones_like(parameter))
                state["steps"] = torch.tensor(1.0)
                parameter.sub_(state["m"], alpha=0.01)


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"momentum": -1, "n": 0}, "names 'momentum', but its state has 'm', 'n', 'steps'"),
        ({"m": -1}, "says nothing of 'n'"),
        (lambda state, group: {"n": 1}, "says nothing of 'm'"),
    ],
)
def test_a_rule_that_does_not_fit_the_state_is_refused_before_a_write(rule: Any, complaint: str) -> None:
    fxenorm.register_optimizer(TwoBuffers, rule)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    plan, optimizer = fxenorm.analyze(model, torch.randn(3, 4)), TwoBuffers(model.parameters())
    plan.step(optimizer)  # without state as yet nothing can be said
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptimizerError, match=complaint):
        plan.step(optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_key_with_power_0_stays() -> None:
    fxenorm.register_optimizer(TwoBuffers, {"m": -1, "n": 0})
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    plan, optimizer = fxenorm.analyze(model, torch.randn(3, 4)), TwoBuffers(model.parameters())
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    weight, sums = model[0].weight.detach().clone(), optimizer.state[model[0].weight]["m"].clone()
    plan.rescale(draw_log_scales(plan), optimizer)
    factor = model[0].weight.detach() / weight
    torch.testing.assert_close(optimizer.state[model[0].weight]["m"], sums / factor)
    assert (optimizer.state[model[0].weight]["n"] == 1).all()

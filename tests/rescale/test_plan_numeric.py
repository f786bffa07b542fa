"""Plans on symmetries made by hand: step, balance and rescale keep the function and the model whole."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxenorm.analysis.options import Options
from fxenorm.errors import BindError, OptimizerError, RescaleError
from fxenorm.plan.plan import Plan

from ..hand_made import Builder, chain
from ..helpers import mlp

WIDTHS = [5, 7, 8, 6, 4]


def network(
    widths: list[int] | None = None, bias: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0
) -> nn.Sequential:
    """The network of `hand_made.chain`, with random weights."""
    return mlp(*(widths or WIDTHS), bias=bias, named=True, seed=seed, dtype=dtype)


def plan_of(model: nn.Module, widths: list[int] | None = None, bias: bool = True, **options: Any) -> Plan:
    """Its plan."""
    return Plan(chain(widths or WIDTHS, bias), Options(**options), model)


def in_numpy(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """The forward pass, without torch."""
    layers = [module for module in model if isinstance(module, nn.Linear)]
    for number, layer in enumerate(layers):
        x = x @ layer.weight.detach().double().numpy().T
        if layer.bias is not None:
            x = x + layer.bias.detach().double().numpy()
        if number < len(layers) - 1:
            x = np.maximum(x, 0)
    return x


X = np.random.default_rng(0).normal(size=(9, 5))


def saved(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of its state."""
    return copy.deepcopy(model.state_dict())


def assert_same(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@settings(deadline=None, max_examples=40)
@given(
    p=st.sampled_from([1, 1.5, 2, 4, math.inf]),
    c=st.sampled_from([1.0, 1.2, "adaptive", {"fc2": 3.0}]),
    biases=st.sampled_from(["scale", "count"]),
    cycles=st.sampled_from([1, 3]),
    widths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_step_keeps_the_function_and_never_raises_the_norm(
    p: float, c: Any, biases: str, cycles: int, widths: list[int], seed: int
) -> None:
    widths = [5, *widths, 4]
    c = 1.0 if isinstance(c, dict) and len(widths) < 3 else c
    model = network(widths, seed=seed)
    plan = plan_of(model, widths, p=p, c=c, biases=biases)
    before, norms = in_numpy(model, X), [plan.norm().item()]
    for _ in range(5):
        plan.step(cycles=cycles)
        norms.append(plan.norm().item())
    assert all(new <= old * (1 + 1e-12) for old, new in itertools.pairwise(norms))
    np.testing.assert_allclose(in_numpy(model, X), before, rtol=1e-9, atol=1e-9 * np.abs(before).max())


def momentum(model: nn.Module, **settings: Any) -> torch.optim.SGD:
    """SGD after one step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, **settings)
    model(torch.ones(2, model.fc1.in_features, dtype=model.fc1.weight.dtype)).square().sum().backward()
    optimizer.step()
    return optimizer


def test_momentum_and_gradients_are_divided() -> None:
    model = network()
    optimizer, plan = momentum(model), plan_of(model)
    before = {p: (p.detach().clone(), p.grad.clone(), optimizer.state[p]["momentum_buffer"].clone()) for p in model.parameters()}
    plan.step(optimizer, grads=True)
    for parameter, (weight, gradient, buffer) in before.items():
        factor = parameter.detach() / weight
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], buffer / factor, rtol=1e-12, atol=0)
        torch.testing.assert_close(parameter.grad, gradient / factor, rtol=1e-12, atol=0)


def spoilt_momentum(model: nn.Sequential) -> Any:
    """An optimizer whose last buffer has a wrong shape."""
    optimizer = momentum(model)
    optimizer.state[model.fc4.weight]["momentum_buffer"] = torch.ones(3)
    return optimizer


def spoilt_parameter(model: nn.Sequential) -> Any:
    """A layer of another size than at the analysis."""
    model.fc4 = nn.Linear(6, 9).double()


@pytest.mark.parametrize(("spoil", "error"), [(spoilt_momentum, OptimizerError), (spoilt_parameter, BindError)])
def test_errors_come_before_anything_is_written(spoil: Any, error: type[Exception]) -> None:
    model = network()
    plan, optimizer = plan_of(model), spoil(model)
    state = saved(model)
    for call in (
        lambda: plan.step(optimizer),
        lambda: plan.balance(optimizer),
        lambda: plan.rescale(torch.ones(plan.num_scales), optimizer),
    ):
        with pytest.raises(error, match="fc4"):
            call()
        assert_same(model, state)


def test_dead_frozen_and_last_variables_are_held() -> None:
    model = network()
    plan = plan_of(model, balance_last=False)
    with torch.no_grad():
        model.fc1.weight[2], model.fc2.weight[:, 3] = 0.0, 0.0
    model.fc1.bias.requires_grad_(False)
    model.fc1.bias.requires_grad_(True)
    reasons = {variable: held.reason for held in plan.held for variable in held.variables}
    assert reasons.keys() == {2, 3, *range(15, 21)}
    assert all("dead" in reasons[k] for k in (2, 3)) and all("balance_last" in reasons[k] for k in range(15, 21))
    state = saved(model)
    plan.step(cycles=2)
    result = plan.balance()
    assert {variable for held in result.held for variable in held.variables} == reasons.keys() and result.converged
    assert torch.equal(model.fc4.weight, state["fc4.weight"]) and torch.equal(model.fc1.bias[2:4], state["fc1.bias"][2:4])
    model.fc2.bias.requires_grad_(False)
    state = saved(model)
    plan.step()
    assert torch.equal(model.fc2.bias, state["fc2.bias"]) and torch.equal(model.fc3.weight, state["fc3.weight"])
    plan.rescale(torch.ones(21))
    torch.testing.assert_close(model.fc2.bias.detach(), state["fc2.bias"] * math.e)


def test_an_inference_model_moves() -> None:
    model = network().requires_grad_(False)
    plan, norm = plan_of(model), plan_of(model).norm().item()
    assert plan.held == ()
    plan.step()
    assert plan.norm().item() < norm


def test_scales_that_would_overflow_are_held() -> None:
    """A bias far above its nearly dead weights."""
    model = network(dtype=torch.float32)
    with torch.no_grad():
        model.fc1.weight[0] *= 1e-38
        model.fc1.bias[0] = 1e30
    plan = plan_of(model)
    plan.step(cycles=5)
    result = plan.balance()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not result.converged and any(0 in held.variables and "overflow" in held.reason for held in result.held)


def test_bind_and_storage() -> None:
    model, other = network(), network(seed=5)
    plan = plan_of(model, p=math.inf)
    stored = Plan.from_dict(json.loads(json.dumps(plan.to_dict())), other)
    bound = plan.bind(other)
    assert stored.fingerprint == bound.fingerprint == plan.fingerprint != plan_of(model).fingerprint
    expected = network(seed=5)
    plan_of(expected, p=math.inf).step()
    stored.step()
    assert_same(other, saved(expected))
    assert_same(model, saved(network()))
    with pytest.raises(BindError, match=r"fc4\.weight has shape \(9, 6\) instead of \(4, 6\)"):
        plan.bind(network([5, 7, 8, 6, 9]))
    with pytest.raises(BindError, match="missing"):
        plan.bind(network(bias=False))
    assert plan.to_networkx().number_of_nodes() == 4


def test_tied_names_must_stay_tied() -> None:
    model = network([5, 5, 5], bias=False)
    model.fc2.weight = model.fc1.weight
    builder = Builder()
    builder.group(1)
    builder.parameter("fc1.weight", (5, 5), "weight", (1, np.zeros((1, 1), dtype=np.int64)))
    plan = Plan(builder.build(aliases={"fc2.weight": "fc1.weight"}), Options(), model)
    plan.rescale([0.5])
    model.fc2.weight = nn.Parameter(model.fc1.weight.detach().clone())
    with pytest.raises(BindError, match=r"fc2\.weight.*fc1\.weight"):
        plan.rescale([0.5])


def test_meta_weights_raise() -> None:
    plan = plan_of(network().to("meta"))
    assert plan.num_scales == 21
    for call in (plan.step, plan.balance, plan.norm):
        with pytest.raises(RescaleError, match="meta"):
            call()


def test_options_are_normalised() -> None:
    options = Options(p=2, c=np.float32(1), exclude=["a", "b"], approximate="relu6")
    assert options == Options(exclude=("a", "b"), approximate=("relu6",)) and type(options.c) is float
    assert dataclasses.replace(options, p=math.inf).p == math.inf


class NoReading(TorchDispatchMode):
    """Refuses every operator that makes the host wait for a value on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "aten.equal"))
        if name.startswith("aten.index") and isinstance(args[1], (list, tuple)):
            assert not any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["auto", "jacobi", "gauss-seidel", "newton"])
@pytest.mark.parametrize("p", [2.0, 12.0, math.inf])
def test_step_waits_for_no_value(p: float, solver: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that computes beside Python: on a CPU a step looks at weights and log-scales first, which costs no wait."""
    monkeypatch.setattr("fxenorm.rescale.cycles._looks_first", lambda weights, targets: False)
    monkeypatch.setattr("fxenorm.weights.objective._are_equal", lambda one, other: False)
    model = network(dtype=dtype)
    optimizer, plan = momentum(model, foreach=False), plan_of(model, p=p, solver=solver)
    with NoReading():
        plan.step(optimizer, grads=True)
        plan.step(optimizer, cycles=2)
        assert plan.norm().ndim == plan.imbalance().ndim == 0 and len(plan.layer_norms()) == 4
        with pytest.raises(AssertionError):
            plan.norm().item()


def test_nothing_warns_in_ordinary_use() -> None:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_of(model).step(momentum(model))

"""The exponents of the norm that are accepted, and that no entry is lost with any of them, whatever the weights' range."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.analysis.options import Options
from fxenorm.errors import OptionError
from fxenorm.kernels.program import ScaleTarget
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.kernels.rooms import are_far_from_ends
from fxenorm.plan.plan import Plan

POWERS = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0, 30.0, 1000.0, math.inf)
LAYER_WEIGHTS = (1.0, 0.1, 10.0)
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXECUTORS = ("compiled", "eager")
RANGES = ("plain", "small first", "large first", "channels", "entries", "all small", "all large")
X = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("p", [1e-3, 0.03, 0.0999, 1001.0, 1e300, 10**400, -1.0, math.nan])
def test_exponents_outside_of_the_range_are_refused(p: float) -> None:
    with pytest.raises(OptionError, match=r"from 0\.1 to 1000"):
        Options(p=p)


@pytest.mark.parametrize("p", [0.1, 1, 2.0, 1000, math.inf])
def test_exponents_in_the_range_are_taken(p: float) -> None:
    assert Options(p=p).p == p


def ends(dtype: torch.dtype) -> tuple[float, float]:
    """The least and the largest weights of a range: 1e-38 to 1e30, as far as the type has them."""
    return (1e-38, 1e30) if dtype != torch.float16 else (1e-7, 1e4)


def network(kind: str, dtype: torch.dtype, seed: int = 0) -> nn.Sequential:
    """Three layers whose weights have some range."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).double()
    small, large = ends(dtype)
    weights = [model[0].weight, model[2].weight, model[4].weight]
    with torch.no_grad():
        if kind in ("small first", "large first"):
            first, last = (small, large) if kind == "small first" else (large, small)
            weights[0].mul_(first)
            weights[1].mul_(math.sqrt(small * large))
            weights[2].mul_(last)
        if kind == "channels":
            # A channel whose writers are small has large readers.
            logs = torch.empty(10, dtype=torch.float64).uniform_(-math.log(large), math.log(large))
            weights[0].mul_(logs.exp()[:, None])
            model[0].bias.mul_(logs.exp())
            weights[1].mul_((-logs).exp())
        if kind == "entries":
            for weight in weights:
                weight.copy_(weight.sign() * torch.empty_like(weight).uniform_(math.log(small), math.log(large)).exp())
        if kind in ("all small", "all large"):
            for parameter in model.parameters():
                parameter.mul_(40 * small if kind == "all small" else large)
    return model.to(dtype)


def planned(model: nn.Module, dtype: torch.dtype, **options: object) -> Plan:
    """The plan under some options; of these models one is traced for each type."""
    if dtype not in _TRACED:
        _TRACED[dtype] = fxenorm.analyze(network("plain", dtype), X.to(dtype))
    return Plan(_TRACED[dtype].symmetry, Options(**options), model)


_TRACED: dict[torch.dtype, Plan] = {}


def outputs(model: nn.Module) -> Tensor:
    """In float64, so that only weights are rounded."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(X)


def zeros(model: nn.Module) -> list[Tensor]:
    """Where parameters are zero."""
    return [parameter == 0 for parameter in model.parameters()]


def log_norm(model: nn.Sequential, p: float, c: float) -> float:
    """The logarithm of the norm by definition, for this chain."""
    logs = [model[index].weight.detach().double().abs().log().flatten() for index in (0, 2, 4)]
    if math.isinf(p):
        return float(torch.cat(logs).amax())
    return float(torch.cat([p * log - p * depth * math.log(c) for depth, log in enumerate(logs)]).logsumexp(0)) / p


def combinations() -> list[tuple[float, float, torch.dtype, str, str]]:
    """Every exponent with every range, and each of the other choices with each of these and with one another."""
    found = []
    for number, (p, kind) in enumerate(itertools.product(POWERS, RANGES)):
        row, column = divmod(number, len(RANGES))
        dtype = TYPES[(row + column) % 4]
        found.append((p, LAYER_WEIGHTS[(row + 2 * column) % 3], dtype, EXECUTORS[(row + column // 2) % 2], kind))
        found.append((p, LAYER_WEIGHTS[(row + column) % 3], TYPES[(row + column + 2) % 4], EXECUTORS[column % 2], kind))
    return found


@pytest.mark.filterwarnings(r"ignore:balance\(\) moved nothing")
@pytest.mark.parametrize(("p", "c", "dtype", "executor", "kind"), combinations())
def test_nothing_is_lost(p: float, c: float, dtype: torch.dtype, executor: str, kind: str) -> None:
    model = network(kind, dtype)
    plan = planned(model, dtype, p=p, c=c, backend=executor)
    before, nothing = outputs(model), zeros(model)
    norm = log_norm(model, p, 1.0 if math.isinf(p) else c)
    assert plan.norm().log().item() == pytest.approx(norm, abs=1e-9 * (1 + abs(norm)))
    epsilon = torch.finfo(dtype).eps
    for work in (plan.step, lambda: plan.step(cycles=3), plan.step, plan.balance):
        result = work()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert all(map(torch.equal, zeros(model), nothing))
        after = outputs(model)
        error = ((after - before).abs().amax(0) / before.abs().amax(0)).max().item()
        assert error <= 16 * epsilon
        if dtype == torch.bfloat16 or (dtype == torch.float16 and result is not None and not result.rounded):
            assert error == 0.0
        before, reached = after, log_norm(model, p, 1.0 if math.isinf(p) else c)
        assert reached <= norm + 4 * epsilon
        norm = reached


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("p", [0.1, 1.0, 2.0, 8.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weak_channels_are_seen(p: float, dtype: torch.dtype, executor: str) -> None:
    """Beside channels that are 1e60 times as strong."""
    model = network("channels", dtype)
    plan = planned(model, dtype, p=p, backend=executor)
    first, second = (model[index].weight.detach().double().abs().log() * p for index in (0, 2))
    expected = (second.logsumexp(0) - first.logsumexp(1)) / p
    torch.testing.assert_close(plan.channel_imbalance()[:10], expected, rtol=1e-9, atol=1e-9)
    norms = plan.layer_norms()
    assert norms["2"].log().item() == pytest.approx(float(second.flatten().logsumexp(0)) / p, rel=1e-9)
    assert plan.balance().converged
    assert plan.imbalance() <= 1e-5


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", ["small first", "large first", "all large", "plain"])
def test_there_is_room_to_reach_the_minimum(kind: str, executor: str) -> None:
    """Layers of 1e-38 beside layers of 1e30 end with equal norms."""
    model = network(kind, torch.float32)
    result = planned(model, torch.float32, backend=executor).balance()
    norms = [model[index].weight.detach().double().norm() for index in (0, 2, 4)]
    assert result.converged and max(norms) / min(norms) < 1 + 1e-4


@pytest.mark.parametrize("executor", EXECUTORS)
def test_small_exponents_in_wide_layers(executor: str) -> None:
    """One cycle would shrink a layer of 512 x 512 weights beyond the range of float16, two beyond that of float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    plan = fxenorm.analyze(model, torch.randn(5, 8), p=0.1, backend=executor)
    before = model.double()(torch.ones(1, 8, dtype=torch.float64))
    model.float()
    for _ in range(4):
        plan.step()
    assert not any((parameter == 0).any() for parameter in model.parameters())
    after = model.double()(torch.ones(1, 8, dtype=torch.float64))
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_state_at_the_ends_of_its_range(optimizer: str, cycles: int, executor: str) -> None:
    """Momentum that has nearly decayed, and squares that nearly overflow, follow as far as they can."""
    model = network("plain", torch.float32)
    with torch.no_grad():
        model[0].weight.mul_(1e3)
        model[2].weight[:, 0] *= 1e4
    options = {"SGD": {"momentum": 0.9}, "Adam": {}}[optimizer]
    chosen = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-30, **options)
    model(X.float()).square().sum().backward()
    chosen.step()
    states = [value for state in chosen.state.values() for value in state.values() if value.ndim > 0]
    with torch.no_grad():
        for state in states:
            state.view(-1)[::3] = 3e-45
            state.view(-1)[1::3] = 3e38
    plan = planned(model, torch.float32, backend=executor)
    before, nothing, norm = outputs(model), [state == 0 for state in states], plan.norm()
    for _ in range(4):
        plan.step(chosen, cycles=cycles)
        assert all(state.isfinite().all() for state in states)
        assert all(torch.equal(state == 0, zero) for state, zero in zip(states, nothing, strict=True))
    assert (outputs(model) - before).abs().max() <= 1e-5 * before.abs().max()
    assert plan.norm() < norm


def test_the_executors_agree_where_rooms_end() -> None:
    for kind, p in itertools.product(RANGES, (0.1, 2.0)):
        models = [network(kind, torch.float32, seed=3) for _ in EXECUTORS]
        for model, executor in zip(models, EXECUTORS, strict=True):
            plan = planned(model, torch.float32, p=p, backend=executor)
            for _ in range(3):
                plan.step()
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=0.0)


def outlier(dtype: torch.dtype) -> nn.Sequential:
    """A column of weights that is far above the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    with torch.no_grad():
        model[0].weight.mul_(0.05)
        model[2].weight.mul_(0.05)
        model[0].weight[:, 0] = 8.0
    return model.to(dtype)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outlier_columns_stay_bit_identical_or_it_is_said(dtype: torch.dtype, executor: str) -> None:
    model, x = outlier(dtype), torch.randn(50, 64).to(dtype)
    x[:, 0] = 0
    before, weights = model(x), [parameter.detach().double() for parameter in model.parameters()]
    result = fxenorm.analyze(model, x, backend=executor).balance()
    changed = 0
    scales = (result.log_scales / math.log(2.0)).round().exp2()
    for old, new, factor in zip(weights, model.parameters(), (scales[:, None], scales, 1 / scales, None), strict=True):
        changed += int((new.double() != (old if factor is None else old * factor)).sum())
    assert result.rounded == changed and ("rounded" in str(result)) == (changed > 0)
    assert torch.equal(model(x), before) or changed
    assert dtype == torch.float16 or not changed


def test_small_entries_of_float16_are_rounded_and_counted() -> None:
    """Entries below 2 ** -11 of their row's largest do not keep a layer from moving, and none becomes zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(16 * (1 + torch.rand(32, 32)))
        model[0].weight.view(-1)[::33] = 7e-5 * (1 + torch.rand(32))
        model[2].weight.copy_(0.01 * (1 + torch.rand(32, 32)))
    model.half()
    x = torch.randn(4, 32).half()
    before = outputs_of(model, x)
    result = fxenorm.analyze(model, x).balance()
    assert result.rounded > 0 and result.norm_after < result.norm_before / 2
    assert all((parameter != 0).all() for parameter in model.parameters())
    assert (outputs_of(model, x) - before).abs().max() <= 2**-11 * before.abs().max()


def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """In float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


@pytest.mark.filterwarnings(r"ignore:balance\(\) moved nothing")
def test_bfloat16_below_the_normal_numbers_keeps_its_digits() -> None:
    model = network("all small", torch.bfloat16)
    with torch.no_grad():
        model[0].weight.mul_(2.0**-6)
    before, x = [parameter.detach().double() for parameter in model.parameters()], X.bfloat16()
    result = planned(model, torch.bfloat16, p=0.1, c=10.0).balance()
    assert result.rounded == 0
    for old, new in zip(before, model.parameters(), strict=True):
        ratio = torch.where(old == 0, 1.0, new.detach().double() / old).log2()
        assert torch.equal(ratio, ratio.round())
    assert model(x).isfinite().all()


@pytest.mark.parametrize("size", [1e-43, 1e-20, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("beside", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("power", [1, -2])
def test_what_two_numbers_of_a_tensor_clear_keeps_every_entry_in_its_room(size: float, beside: float, power: int) -> None:
    """The quick look of a CPU's step never lets through what the rooms of single entries forbid."""
    generator = torch.Generator().manual_seed(int(math.log(size)) + 100)
    tensor = size * torch.rand(6, 5, generator=generator, dtype=torch.float32, device="cpu")
    tensor[0, 0] = beside
    rows = torch.arange(6, dtype=torch.int64, device="cpu")[:, None]
    columns = 6 + torch.arange(5, dtype=torch.int64, device="cpu")[None, :]
    targets = [ScaleTarget("weight", tensor, ((1, rows), (-1, columns)), power)]
    cleared = 0
    for reach in (0.1, 5.0, 60.0, 200.0):
        for _ in range(10):
            log_scales = reach * torch.randn(11, generator=generator, dtype=torch.float64, device="cpu")
            if are_far_from_ends(targets, log_scales):
                cleared += 1
                assert not bool(EagerBackend().leaving(targets, log_scales).any())
    assert cleared >= (10 if 1e-20 <= size <= 1e20 else 0)

"""Steps in powers of two and with a dead band: safe without a look at the objective, and complete in the long run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import OptionError
from fxenorm.rescale.cycles import LOOKS_EVERY

EXECUTORS = ("eager", "compiled")


class SelfMeeting(nn.Module):
    """x + W x: entries of W carry two variables of one group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.last((x + self.second(x)).relu())


class Gated(nn.Module):
    """A product of two layers: channels of three weights belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 9), nn.Linear(5, 9), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.a(x) * self.b(x).relu())


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )


def deep() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(7, 7), nn.ReLU())], nn.Linear(7, 3))


NETWORKS: tuple[Callable[[], nn.Module], ...] = (SelfMeeting, Gated, convolutions, deep)
WAYS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "bfloat16": (torch.bfloat16, {}),
    "float16": (torch.float16, {}),
    "pow2": (torch.float32, {"scales": "pow2"}),
    "pow2 in float64, p = 1": (torch.float64, {"scales": "pow2", "p": 1.0}),
    "pow2, p = inf": (torch.float32, {"scales": "pow2", "p": math.inf, "batchnorm": "folded"}),
    "dead band": (torch.float64, {"deadband": 0.05}),
    "dead band over octaves": (torch.float32, {"scales": "pow2", "deadband": 0.9}),
    "largest step": (torch.float32, {"scales": "pow2", "max_log_scale": 0.8}),
}


def unbalanced(build: Callable[[], nn.Module], dtype: torch.dtype, spread: float = 1.5) -> nn.Module:
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= torch.exp(spread * torch.randn(parameter.shape[0], *[1] * (parameter.ndim - 1)))
    return model.to(dtype).eval()


def inputs(model: nn.Module) -> torch.Tensor:
    parameter = next(model.parameters())
    return torch.randn((2, 3, 7, 7) if parameter.ndim == 4 else (2, parameter.shape[1])).to(parameter.dtype)


def steps_of(model: nn.Module, x: torch.Tensor, options: dict[str, Any], executor: str, count: int) -> tuple[list[float], Any]:
    """Returns the norm before and after each step, and the plan."""
    plan = fxenorm.analyze(model, x, backend=executor, **options)
    norms = [float(plan.norm())]
    for _ in range(count):
        plan.step()
        norms.append(float(plan.norm()))
    return norms, plan


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", NETWORKS)
def test_the_norm_never_rises_and_falls_at_first(build: Callable[[], nn.Module], way: str, executor: str) -> None:
    dtype, options = WAYS[way]
    model = unbalanced(build, dtype)
    x = inputs(model)
    before = model(x).detach()
    norms, plan = steps_of(model, x, options, executor, LOOKS_EVERY + 3)
    # The norm itself is a sum in float32 where the weights are no wider.
    assert all(after <= earlier * (1 + 1e-6) for earlier, after in itertools.pairwise(norms))
    assert norms[-1] < norms[0] or way == "pow2, p = inf"
    if plan.options.scales == "pow2" or dtype == torch.bfloat16:
        assert torch.equal(model(x), before)
    else:
        torch.testing.assert_close(
            model(x).detach(), before, rtol=2e-2 if dtype == torch.float16 else 1e-9, atol=2e-2 * float(before.abs().max())
        )


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("octaves", [0.4, 0.6, 0.9, 1.0, 1.4, 1.7])
def test_neighbours_that_all_move_do_not_overshoot_together(octaves: float, executor: str) -> None:
    """Every channel is that many octaves from balance, in turn up and down: rounded to the nearest one, all would go too far."""
    layers = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(9)]
    for number, layer in enumerate(layers):
        nn.init.constant_(layer.weight, 2.0 ** (octaves if number % 2 else -octaves))
    model = nn.Sequential(*[item for layer in layers for item in (layer, nn.ReLU())][:-1])
    norms, _ = steps_of(model, torch.ones(1, 1, dtype=torch.float64), {"scales": "pow2"}, executor, 3)
    assert all(after <= earlier for earlier, after in itertools.pairwise(norms))
    assert (norms[-1] < norms[0]) == (octaves >= 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", NETWORKS)
def test_executors_agree_bit_for_bit_where_factors_are_whole_octaves(build: Callable[[], nn.Module], way: str) -> None:
    dtype, options = WAYS[way]
    start = unbalanced(build, dtype).state_dict()
    found = []
    for executor in EXECUTORS:
        model = build().to(dtype).eval()
        model.load_state_dict(start)
        steps_of(model, inputs(model), options, executor, 12)
        found.append(model)
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        if way == "dead band":
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("options", "rest"), [({"scales": "pow2"}, math.log(2.0)), ({"deadband": 0.05}, 0.05)])
@pytest.mark.parametrize("build", NETWORKS)
def test_at_rest_each_channel_is_near_balance(
    build: Callable[[], nn.Module], options: dict[str, Any], rest: float, executor: str
) -> None:
    model = unbalanced(build, torch.float64)
    _, plan = steps_of(model, inputs(model), options, executor, LOOKS_EVERY - 1)
    degree = plan.rescaler.analysis.counted.program.degree
    for _ in range(400):
        before = [parameter.clone() for parameter in model.parameters()]
        plan.rescaler.steps = 0  # no far look: cycles alone come to rest
        plan.step()
        if all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True)):
            break
    else:
        raise AssertionError("the cycles never come to rest")
    assert bool((plan.channel_imbalance().abs() <= degree * rest * (1 + 1e-9)).all())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("options", [{"scales": "pow2"}, {"deadband": 0.5}])
def test_what_single_cycles_leave_for_ever_is_found(options: dict[str, Any], executor: str) -> None:
    """Ten layers of 1.99 ** i: no channel is an octave, or half a logarithm, from balance; all together are far from it."""

    def chain() -> nn.Module:
        layers = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(10)]
        for power, layer in enumerate(layers):
            nn.init.constant_(layer.weight, 1.99**power if options.get("scales") else 1.6**power)
        return nn.Sequential(*[item for layer in layers for item in (layer, nn.ReLU())][:-1])

    model = chain()
    norms, plan = steps_of(model, torch.ones(1, 1, dtype=torch.float64), options, executor, 4 * LOOKS_EVERY)
    assert norms[LOOKS_EVERY - 1] == norms[0]
    least = fxenorm.analyze(chain()).balance().norm_after
    # Two variables an entry: half an octave each at most.
    assert norms[-1] ** 2 <= 2 ** (2 * 2 / 2) * least**2
    assert float(plan.imbalance()) < 1.0


@pytest.mark.parametrize("way", ["bfloat16", "pow2", "dead band"])
def test_the_number_of_threads_changes_no_bit(way: str) -> None:
    dtype, options = WAYS[way]
    start, found, threads = unbalanced(convolutions, dtype).state_dict(), [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            model = convolutions().to(dtype).eval()
            model.load_state_dict(start)
            steps_of(model, inputs(model), options, "compiled", 5)
            found.append(model.state_dict())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in start)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_steps_that_move_nothing_leave_every_bit_and_the_state(executor: str) -> None:
    model = unbalanced(deep, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    plan = fxenorm.analyze(model, deadband=0.3, backend=executor)
    plan.balance()
    model(torch.randn(4, 7)).square().mean().backward()
    optimizer.step()
    kept = [tensor.clone() for tensor in (*model.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values()))]
    for _ in range(3):
        plan.step(optimizer)
    now = (*model.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values()))
    assert all(torch.equal(one, other) for one, other in zip(kept, now, strict=True))


def test_a_resumed_run_looks_far_at_the_same_steps() -> None:
    def trained(model: nn.Module, first: int, last: int, state: dict[str, Any] | None) -> dict[str, Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        handle = fxenorm.analyze(model, deadband=0.2, backend="eager").attach(optimizer)
        if state is not None:
            handle.load_state_dict(state)
        for number in range(first, last):
            optimizer.zero_grad()
            x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            model(x).square().mean().backward()
            optimizer.step()
        return handle.state_dict()

    start = unbalanced(deep, torch.float64).state_dict()
    whole, parts = deep().double(), deep().double()
    whole.load_state_dict(start)
    parts.load_state_dict(start)
    trained(whole, 0, LOOKS_EVERY + 10, None)
    state = trained(parts, 0, LOOKS_EVERY - 5, None)
    trained(parts, LOOKS_EVERY - 5, LOOKS_EVERY + 10, state)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, math.inf, True, "0.1", None])
def test_bad_dead_bands_say_what_is_expected(value: Any) -> None:
    with pytest.raises(OptionError, match=r"deadband=.* is not a valid option: expected a number from 0 to 1"):
        fxenorm.analyze(deep(), deadband=value)


def test_a_limit_within_which_no_power_of_two_lies_is_refused() -> None:
    with pytest.raises(OptionError, match=r"max_log_scale=0\.5 is smaller than log 2"):
        fxenorm.analyze(deep(), scales="pow2", max_log_scale=0.5)
    plan = fxenorm.analyze(deep().bfloat16(), max_log_scale=0.5)
    with pytest.raises(OptionError, match=r"max_log_scale=0\.5 is smaller than log 2"):
        plan.step()
    assert fxenorm.analyze(deep(), deadband=0.0).fingerprint == fxenorm.analyze(deep()).fingerprint

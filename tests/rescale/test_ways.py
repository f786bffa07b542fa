"""Every way of training of tools/bench.py: which code runs it, and that it keeps what all of them promise."""

from __future__ import annotations

import copy
import ctypes
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.kernels.cpu import build

from ..helpers import load_tool

try:
    build.library()
except build.BuildError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)

BENCH = load_tool("bench")
WAYS: dict[str, Any] = BENCH.WAYS
LONG = 1000
ROUNDING = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.0, torch.float16: 0.0}
"""How closely executors agree after some steps; in 16 bits all factors are powers of two."""

pytestmark = [pytest.mark.filterwarnings("ignore:p=inf with batchnorm", r"ignore:balance\(\) moved nothing.*max_log_scale")]
Session = tuple[nn.Module, torch.optim.Optimizer, fxenorm.Plan]


def network(width: int) -> tuple[nn.Module, torch.Tensor]:
    """Of a width of 64 it has more entries than one thread takes by itself."""
    layers = [
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 96, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 10)).eval(), torch.randn(2, 3, 8, 8)


def session(name: str, backend: str, width: int = 64, spread: float = 1.0) -> Session:
    """The same unbalanced weights each time, with momentum; without spread, none is so small that float16 has no room for it."""
    torch.manual_seed(0)
    made = network(width) if WAYS[name].build is None else WAYS[name].build()
    with torch.no_grad():
        for parameter in made[0].parameters():
            if parameter.ndim > 1 and not spread:
                parameter.copy_(parameter.sgn() * (0.05 + 0.05 * torch.rand(parameter.shape)))
            elif parameter.ndim > 1:
                parameter *= torch.exp(spread * torch.randn(parameter.shape[0], *[1] * (parameter.ndim - 1)))
    return BENCH.at_work(WAYS[name], made, backend)


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, gradients and state."""
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return [*model.state_dict().values(), *(parameter.grad for parameter in model.parameters()), *states]


class Counting:
    """The compiled kernels, which count how often each is called."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.calls = library, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self.library, name)


@pytest.mark.parametrize("name", WAYS)
def test_the_path_that_is_told_is_the_one_that_runs(name: str) -> None:
    _, optimizer, plan = session(name, "compiled", spread=0.0)
    backend = plan.rescaler.analysis.backend
    backend.library = counting = Counting(backend.library)
    plan.balance(optimizer)
    for _ in range(3):  # the first step prepares the others
        counting.calls.clear()
        WAYS[name].step(plan, optimizer)
    path = BENCH.path_of(WAYS[name], plan)
    whole = counting.calls["fxenorm_step"] + counting.calls["fxenorm_cycles"]
    assert (whole == 1) == (path.calls == 1) and bool(path.why) == (path.calls != 1)
    if path.calls == 1:
        assert sum(counting.calls.values()) == 1
    if path.calls == 2:
        assert whole == 0 and counting.calls["fxenorm_reduce"] == counting.calls["fxenorm_scale"] == 1


def test_most_ways_take_one_compiled_call_and_the_others_say_why() -> None:
    """What this table says is told to users."""
    found = {}
    for name in WAYS:
        _, optimizer, plan = session(name, "compiled")
        WAYS[name].step(plan, optimizer)
        found[name] = str(BENCH.path_of(WAYS[name], plan))
    several = "plain PyTorch (sums over kernels of p=1.5 need a power an entry in each cycle)"
    others = {
        "p = 1.5, 3 cycles": several,
        "Gauss-Seidel, p = 1.5": several,
        "folded, biases counted": "two compiled calls (biases are counted with norms folded in)",
        "complex weights, p = 1": "two compiled calls (it is complex, and p is not 2)",
        "x + W x": "two compiled calls (two of its terms meet in one variable)",
        "1 + gamma": "two compiled calls (its entries have an offset)",
    }
    assert found == {**dict.fromkeys(WAYS, "one compiled call"), **others}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_agrees_with_plain_pytorch(name: str) -> None:
    found = []
    for backend in ("compiled", "eager"):
        model, optimizer, plan = session(name, backend)
        for _ in range(4):
            WAYS[name].step(plan, optimizer)
        found.append(tensors_of(model, optimizer))
    rtol = ROUNDING[WAYS[name].dtype]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=0.0 if rtol == 0.0 else 1e-30)


@pytest.mark.parametrize("name", WAYS)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    model, optimizer, plan = session(name, "compiled")
    start = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [parameter.grad for parameter in model.parameters()]))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            model.load_state_dict(start[0])
            optimizer.load_state_dict(copy.deepcopy(start[1]))
            for parameter, gradient in zip(model.parameters(), start[2], strict=True):
                parameter.grad = gradient.clone()
            for _ in range(3):
                WAYS[name].step(plan, optimizer)
            found.append([tensor.clone() for tensor in tensors_of(model, optimizer)])
    finally:
        torch.set_num_threads(threads)
    assert not all(map(torch.equal, found[0], (*start[0].values(),)))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def norms_of_training(name: str, count: int, rate: float) -> tuple[list[tuple[float, float]], list[float]]:
    """The norm before and after each step of a run on random numbers, and how much larger it became at most."""
    model, first, plan = session(name, "compiled", width=8)
    plan.balance(first)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(count):
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.grad = noise * parameter.detach().abs().mean().to(parameter.dtype)
        optimizer.step()
        before = float(plan.norm())
        WAYS[name].step(plan, optimizer)
        pairs.append((before, float(plan.norm())))
    return pairs, [after / before - 1 for before, after in pairs]


@pytest.mark.parametrize("name", WAYS)
def test_no_step_of_a_training_run_raises_the_norm(name: str) -> None:
    pairs, risen = norms_of_training(name, 20, 0.03)
    assert max(risen) <= (1e-12 if WAYS[name].dtype == torch.float64 else 1e-6)
    assert min(risen) < 0 and all(math.isfinite(after) for _, after in pairs)


@pytest.mark.parametrize("name", ["p = 1.5", "float16"])
def test_no_step_of_a_long_run_raises_the_norm(name: str) -> None:
    pairs, risen = norms_of_training(name, LONG, 0.01)
    assert len(pairs) == LONG and max(risen) <= 1e-6 and min(risen) < 0

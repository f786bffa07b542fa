"""Cycles in one call of the compiled kernels: the weights that the eager executor gives, and what is left to it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxenorm
from fxenorm.kernels.cpu import build
from fxenorm.kernels.cpu.cycles_table import CyclesTable
from fxenorm.kernels.cpu.executor import CompiledBackend
from fxenorm.kernels.cpu.step_table import StepTable

from ..executor_cases import ROUNDINGS, Twin
from ..random_plans import Case, cases

try:
    build.library()
except build.BuildError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)


@settings(max_examples=150)
@given(
    case=cases(),
    dtype=st.sampled_from(list(ROUNDINGS)),
    order=st.permutations(range(3)),
    hold=st.lists(st.booleans(), min_size=6, max_size=6),
    limit=st.sampled_from([math.inf, 0.1]),
)
def test_one_cycle_is_the_eager_one(case: Case, dtype: torch.dtype, order: list[int], hold: list[bool], limit: float) -> None:
    twin, held = Twin(case, dtype, order), torch.tensor(hold[: case.num_scales])
    runner = CompiledBackend().cycles(twin.task(held, limit))
    collided = any(block.collided is not None for block in case.program().blocks)
    assert runner is not None or collided
    before = twin.ours[-1].clone()
    if runner is not None and runner.run([None] * len(twin.ours), 1):
        twin.eager_cycles(1, held, limit)
        assert dtype == torch.bfloat16 or held.all() or not torch.equal(before, twin.ours[-1])
    twin.assert_same()


@settings(max_examples=150)
@given(
    case=cases(infinite=False),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    order=st.permutations(range(3)),
    count=st.integers(1, 6),
    limit=st.sampled_from([math.inf, 0.3]),
)
def test_several_cycles_are_the_eager_ones(case: Case, dtype: torch.dtype, order: list[int], count: int, limit: float) -> None:
    twin, held = Twin(case, dtype, order), torch.zeros(case.num_scales, dtype=torch.bool)
    task = twin.task(held, limit)
    step = StepTable(task)
    cycles = CyclesTable(step, task)
    assert cycles.covers_all or not step.covers_all or case.p not in (1.0, 2.0, 4.0)
    if cycles.covers_all and cycles.run(build.library(), task.factors, count):
        twin.eager_cycles(count, held, limit)
    twin.assert_same(roundings=8.0)


class Block(nn.Module):
    """Kernels of several sizes, groups, a depthwise convolution, BatchNorm, a residual and layers of more than one tile."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 96, 5)
        self.norm = nn.BatchNorm2d(96)
        self.grouped = nn.Conv2d(96, 96, 3, groups=4, padding=1)
        self.depthwise = nn.Conv2d(96, 96, 3, groups=96, padding=1)
        self.wide = nn.Conv2d(96, 512, (3, 2))
        self.last = nn.Conv2d(512, 512, 3)
        self.head = nn.Linear(512, 1000)
        self.out = nn.Linear(1000, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.norm(self.stem(x)).relu()
        x = x + self.depthwise(self.grouped(x).relu())
        x = self.last(self.wide(x.relu()).relu()).relu().amax((2, 3))
        return self.out(self.head(x).relu())


def blocks(**options: object) -> list[tuple[nn.Module, torch.optim.Optimizer, fxenorm.Plan]]:
    """The same block twice, for the compiled and for the eager executor."""
    found = []
    for backend in ("compiled", "eager"):
        torch.manual_seed(0)
        model = Block()
        nn.init.uniform_(model.norm.weight, 0.5, 2.0)
        plan = fxenorm.analyze(model.eval(), torch.randn(2, 3, 12, 12), backend=backend, **options)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        model(torch.randn(2, 3, 12, 12)).square().sum().backward()
        optimizer.step()
        found.append((model, optimizer, plan))
    return found


def assert_same_blocks(found: list[tuple[nn.Module, torch.optim.Optimizer, fxenorm.Plan]], rtol: float = 4e-6) -> None:
    """Weights and momentum of both."""
    (one, first, _), (other, second, _) = found
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-37)
        torch.testing.assert_close(first.state[a]["momentum_buffer"], second.state[b]["momentum_buffer"], rtol=rtol, atol=1e-37)


LAYOUTS = (torch.contiguous_format, torch.channels_last)
OPTIONS: list[dict[str, object]] = [
    *({"p": p} for p in (0.1, 0.5, 1.0, 1.7, 2.0, 3.0, 4.0, 6.0, 7.7, 16.0, 99.5, 1000.0, math.inf)),
    *({"p": p, "batchnorm": "folded"} for p in (2.0, 3.0, math.inf)),
    {"c": 1.3},
]


@pytest.mark.parametrize(
    ("options", "cycles", "memory_format"),
    [
        *((options, (1, 3)[number % 2], LAYOUTS[number // 2 % 2]) for number, options in enumerate(OPTIONS)),
        *((options, (3, 1)[number % 2], LAYOUTS[number // 2 % 2]) for number, options in enumerate(OPTIONS)),
    ],
)
@pytest.mark.filterwarnings("ignore:p=inf with batchnorm")
def test_models_of_all_kinds_of_layers(options: dict[str, object], cycles: int, memory_format: torch.memory_format) -> None:
    found = blocks(**options)
    for model, optimizer, plan in found:
        model.to(memory_format=memory_format)
        for _ in range(3):
            plan.step(optimizer, cycles=cycles)
    assert_same_blocks(found)


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-30, 1e12, 1e18])
@pytest.mark.parametrize("layer", ["last", "head"])
def test_weights_whose_squares_leave_the_range(layer: str, size: float, cycles: int) -> None:
    """Channels of zeros, or tiny, or huge, with a kernel and without: the eager executor's logarithms know no such limits."""
    found = blocks()
    for model, optimizer, plan in found:
        with torch.no_grad():
            model.get_submodule(layer).weight[:, :7].mul_(size)
        for _ in range(3):
            plan.step(optimizer, cycles=cycles)
    assert_same_blocks(found, rtol=2e-5)


def test_bad_starts_and_steps_back_and_forth() -> None:
    """A model far from its optimum, then calm, then far again."""
    found = blocks()
    for model, optimizer, plan in found:
        for factor in (1e5, 1.0, 1e-4, 1e9):
            with torch.no_grad():
                model.wide.weight[::2] *= factor
            for _ in range(3):
                plan.step(optimizer)
    assert_same_blocks(found, rtol=2e-5)


def test_a_step_needs_no_memory_of_the_size_of_the_weights() -> None:
    import tracemalloc

    (model, optimizer, plan), _ = blocks()
    plan.step(optimizer)
    tracemalloc.start()
    try:
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            for _ in range(3):
                plan.step(optimizer)
        numpy_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = max(parameter.numel() * 4 for parameter in model.parameters())
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated + numpy_peak < largest / 2


def test_steps_that_a_gradient_scaler_may_skip_take_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = StepTable.run
    monkeypatch.setattr(StepTable, "run", lambda self, *given: calls.append(run(self, *given)) or calls[-1])
    found = blocks()
    (model, optimizer, plan), (_, theirs, reference) = found
    for one in (optimizer, theirs):
        one.param_groups[0]["fused"] = True  # such optimizers skip a step themselves
    handles = [plan.attach(optimizer), reference.attach(theirs)]
    for skipped in (0.0, 0.0, 1.0, 0.0, 1.0):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        calls.clear()
        for one in (optimizer, theirs):
            one.found_inf = torch.tensor([skipped])  # type: ignore[attr-defined]
            one.zero_grad()  # no gradient: the step itself changes nothing
            one.step()
        same = [torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert calls == ([] if skipped else [True]) and all(same) == bool(skipped)
        assert_same_blocks(found, rtol=1e-5)
    for handle in handles:
        handle.remove()


def test_entries_at_the_end_of_their_range_are_not_tried_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    prepared = StepTable.prepared
    monkeypatch.setattr(StepTable, "prepared", lambda self: tries.append(None) or prepared(self))
    found = []
    for backend in ("compiled", "eager"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)).to(torch.float16)
        with torch.no_grad():
            model[0].weight.mul_(2.0**8)
            model[0].weight[:, 0] = 2.0**-24  # the smallest number: it has no room to go down
        plan = fxenorm.analyze(model, torch.randn(2, 4, dtype=torch.float16), backend=backend)
        for _ in range(40):
            plan.step()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *found)) and 1 <= len(tries) <= 8

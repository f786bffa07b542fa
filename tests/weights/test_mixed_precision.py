"""Autocast with a scaler, 16-bit parameters, compiled models and optimizer steps, channels_last."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import fxenorm

from ..helpers import draw_log_scales, generator, outputs, relative_difference

IMAGES = torch.randn(4, 3, 8, 8, generator=generator(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("fused", [False, True])
def test_autocast_and_scaler(fused: bool) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    handle = fxenorm.analyze(model, IMAGES).attach(optimizer, every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(IMAGES).float(), torch.arange(4) % 2)
        scaler.scale(loss * (torch.inf if step == 1 else 1.0)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert handle.steps == 5
    assert all(parameter.isfinite().all() and parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_500_steps_leave_16_bit_outputs_bit_identical_where_generic_factors_drift(dtype: torch.dtype) -> None:
    """The weights are not trained, so all that could change the outputs is the rescaling."""
    model = network().to(dtype).eval()
    images = [IMAGES.to(dtype)]
    plan = fxenorm.analyze(model, *images)
    with torch.no_grad():
        model[0].weight.mul_(37.0)
    generic = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    before, weights = outputs(model, images), model[0].weight.detach().clone()
    for _ in range(500):
        plan.step(optimizer)
    ratio = (model[0].weight / weights).double().log2()
    assert ratio.any() and torch.equal(ratio, ratio.round()), "they did move, by powers of two"
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model, images), strict=True))
    exact = fxenorm.analyze(generic, *images, scales="exact")
    for _ in range(500):
        exact.step()
    assert relative_difference(before, outputs(generic, images)) > 1e-4, "generic factors are rounded"
    weights = generic[0].weight.detach().double()
    for seed in range(40):
        exact.rescale(0.1 * draw_log_scales(exact, seed=seed))
        exact.rescale(-0.1 * draw_log_scales(exact, seed=seed))
    drift = (generic[0].weight.detach().double() / weights - 1).abs().max()
    assert drift > 2 * torch.finfo(dtype).eps, "and drift: there and back again is elsewhere, by more than one rounding"


def test_16_bit_parameters_with_wider_state_train_on() -> None:
    model = network().bfloat16()
    plan = fxenorm.analyze(model, IMAGES.bfloat16())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plan.attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES.bfloat16()).float(), torch.arange(4) % 2).backward()
        optimizer.step()
    assert all(parameter.isfinite().all() and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_channels_last_stays_and_gives_the_same() -> None:
    plain, last = network().double(), network().double().to(memory_format=torch.channels_last)
    images = IMAGES.double()
    for model in (plain, last):
        plan = fxenorm.analyze(model, images)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-3)
        plan.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.arange(4) % 2).backward()
            optimizer.step()
    assert last[2].weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_model_and_compiled_optimizer_step() -> None:
    plain, model = network().double(), network().double()
    images = IMAGES.double()
    compiled = torch.compile(model, backend="eager")
    results = []
    for network_, run in ((plain, plain), (model, compiled)):
        plan = fxenorm.analyze(run, images)
        assert plan.model is network_
        # Not AdamW: compiled, its bias correction is computed in another type.
        optimizer = torch.optim.SGD(network_.parameters(), lr=0.1, momentum=0.9)
        handle = plan.attach(optimizer)
        step = optimizer.step if run is plain else torch.compile(optimizer.step, backend="eager")
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(images), torch.arange(4) % 2).backward()
            step()
        assert handle.steps == 4
        results.append([parameter.detach() for parameter in network_.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "capturable": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(1e-2), capturable=True, foreach=True),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
}


def compiled_run(name: str, whole: bool, attach: bool) -> tuple[list[Tensor], list[int]]:
    """Five steps; the weights, and after each step how many graphs had been compiled."""
    torch._dynamo.reset()
    counter = CompileCounter()
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(3)))
    inputs = torch.randn(8, 4, dtype=torch.float64, generator=generator(1))
    plan = fxenorm.analyze(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    handle = plan.attach(optimizer) if attach else None

    def train_step() -> None:
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        step()

    step, compiled = optimizer.step, torch.compile(train_step if whole else optimizer.step, backend=counter)
    if not whole:
        step = compiled
    frames = []
    for _ in range(5):
        (compiled if whole else train_step)()
        if handle is None:
            plan.step(optimizer)
        frames.append(counter.frame_count)
    assert handle is None or handle.steps == 5
    return [parameter.detach() for parameter in model.parameters()], frames


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("whole", [False, True], ids=["step", "training step"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_hook_of_a_compiled_step(name: str, whole: bool) -> None:
    """It rescales as `plan.step` does after the compiled step, and costs no compilation beyond it."""
    (weights, frames), (expected, without) = compiled_run(name, whole, True), compiled_run(name, whole, False)
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    assert frames == without and frames[-1] == frames[1], "a rescaling invalidates nothing"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_compiled_before_a_plan_is_attached_and_after_it_is_removed(name: str) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    plan = fxenorm.analyze(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    step = torch.compile(optimizer.step, backend="eager")

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            step()

    train(2)
    with plan.attach(optimizer) as handle:
        train(3)
        assert float(plan.imbalance()) < 1e-3
    train(2)
    assert handle.steps == 3
    with plan.attach(optimizer, every=2) as handle:
        train(3)
    assert handle.steps == 3

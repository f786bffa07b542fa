"""Autocast with a scaler, 16-bit parameters, compiled models and optimizer steps, channels_last."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxenorm

from .helpers import draw_log_scales, generator, outputs, relative_difference

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

"""Networks drawn at random: whatever is put together, a rescaling keeps the function, and broken plans are seen."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import fxenorm

from ..helpers import (
    TOLERANCE,
    draw_log_scales,
    gradients_along_scales,
    outputs,
    randomise,
    randomness_off,
    relative_difference,
    rescale_by_hand,
    soundness_error,
    state_of,
)
from ..zoo import Residual

FREE = ("relu", "leaky", "prelu", "dropout", "pool")
"""Keep every scale."""
STOPS = ("gelu", "sigmoid", "plus_one")
"""Stop every scale."""


class PlusOne(nn.Module):
    """Adds a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def activation(kind: str, width: int) -> nn.Module:
    """A module that keeps the channels."""
    return {
        "relu": nn.ReLU(),
        "leaky": nn.LeakyReLU(0.2),
        "prelu": nn.PReLU(width),
        "dropout": nn.Dropout(0.5),
        "pool": nn.MaxPool2d(2, 1, padding=1),
        "gelu": nn.GELU(),
        "sigmoid": nn.Sigmoid(),
        "plus_one": PlusOne(),
    }[kind]


step = st.tuples(
    st.integers(2, 6),  # width after the step
    st.sampled_from(("conv", "pointwise", "depthwise", "norm", "residual")),
    st.sampled_from(FREE + STOPS),
    st.booleans(),  # bias
)


def build(steps: list[tuple[int, str, str, bool]]) -> tuple[nn.Module, int]:
    """The network, and how many scales it must at least have: the widths between convolutions that nothing stops."""
    layers: list[nn.Module] = []
    width, least = 3, 0
    open_channels = 0  # scales of the present activation, 0 where it is fixed
    for after, kind, act, bias in steps:
        if kind in ("conv", "pointwise"):
            kernel = 3 if kind == "conv" else 1
            layers.append(nn.Conv2d(width, after, kernel, padding=kernel // 2, bias=bias))
            least, open_channels, width = least + open_channels, after, after
        elif kind == "depthwise":
            layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias))
            least, open_channels = least + open_channels, width
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(width))
            open_channels = width  # what came before is held, gamma starts anew
        else:
            inner = nn.Sequential(nn.Conv2d(width, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, width, 1, bias=bias))
            layers.append(Residual(inner))
            least += after
        layers.append(activation(act, width))
        if act in STOPS:
            open_channels = 0
    layers.append(nn.Conv2d(width, 2, 1))
    return nn.Sequential(*layers), least + open_channels


@settings(max_examples=15, phases=[Phase.generate])
@given(steps=st.lists(step, min_size=1, max_size=5), seed=st.integers(0, 2**20))
def test_random_networks(steps: list[tuple[int, str, str, bool]], seed: int) -> None:
    model, least = build(steps)
    inputs = (torch.randn(3, 3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),)
    model = randomise(randomness_off(model.double()), inputs, seed=seed)
    plan = fxenorm.analyze(model, inputs)
    assert plan.num_scales == least
    for mode in ("eval", "train"):
        assert soundness_error(model, plan, inputs, mode) <= TOLERANCE
    before = outputs(model, inputs)
    norm = plan.norm().item()
    moves = plan.num_scales > sum(entry.count for entry in plan.held)
    with nullcontext() if moves else pytest.warns(fxenorm.FxenormWarning, match="moved nothing"):
        plan.step()
    assert plan.norm().item() <= norm * (1 + 1e-12)
    assert relative_difference(before, outputs(model, inputs)) <= TOLERANCE


@pytest.fixture(scope="module")
def chain() -> tuple[nn.Module, Any, tuple[torch.Tensor]]:
    """Two convolutions, a norm and a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 3 * 4, 2)
    ).double()
    inputs = (torch.randn(4, 3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)
    randomise(model, inputs, seed=1)
    return model, fxenorm.analyze(model, inputs), inputs


def corruptions() -> dict[str, Any]:
    """Wrong plans: a function from right exponents to wrong ones."""

    def negated(exponents: dict[str, Any], name: str) -> dict[str, Any]:
        return {**exponents, name: tuple((-coefficient, ids) for coefficient, ids in exponents[name])}

    def rolled(exponents: dict[str, Any], name: str) -> dict[str, Any]:
        return {
            **exponents,
            name: tuple((c, torch.as_tensor(ids).roll(1, list(ids.shape).index(max(ids.shape)))) for c, ids in exponents[name]),
        }

    return {
        "a consumer forgotten": lambda e: {name: terms for name, terms in e.items() if name != "6.weight"},
        "a bias forgotten": lambda e: {name: terms for name, terms in e.items() if name != "1.bias"},
        "a sign wrong": lambda e: negated(e, "6.weight"),
        "channels shifted by one": lambda e: rolled(e, "1.weight"),
        "features shifted by one": lambda e: rolled(e, "6.weight"),
    }


@pytest.mark.parametrize("corruption", corruptions())
def test_wrong_exponents_are_seen(chain: tuple[nn.Module, Any, tuple[torch.Tensor]], corruption: str) -> None:
    """Control: both checks catch each of these."""
    model, plan, inputs = chain
    before, saved = outputs(model, inputs), state_of(model)
    wrong = corruptions()[corruption](dict(plan.exponents))
    rescale_by_hand(model, wrong, draw_log_scales(plan))
    after = outputs(model, inputs)
    model.load_state_dict(saved)
    assert relative_difference(before, after) > 1e-3

    class Wrong:
        num_scales = plan.num_scales
        exponents = wrong

    assert gradients_along_scales(model, plan, inputs).max().item() <= 1e-10
    assert gradients_along_scales(model, Wrong, inputs).max().item() > 1e-3


def test_zero_log_scales_change_no_bit(chain: tuple[nn.Module, Any, tuple[torch.Tensor]]) -> None:
    model, plan, _ = chain
    saved = state_of(model)
    plan.rescale(torch.zeros(plan.num_scales))
    for name, value in state_of(model).items():
        assert torch.equal(value, saved[name])


@pytest.mark.parametrize("batchnorm", ["affine", "folded", "frozen"])
def test_batch_norm_options_keep_the_function_in_their_modes(batchnorm: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    ).double()
    inputs = (torch.randn(4, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)
    randomise(model, inputs, seed=2)
    plan = fxenorm.analyze(model, inputs, batchnorm=batchnorm)
    frozen = batchnorm == "frozen"
    # frozen: the convolutions in front of the norms become free too
    assert plan.num_scales == (5 + 6) * (2 if frozen else 1)
    assert plan.exact is not frozen or "train" not in plan.modes
    saved = state_of(model)
    assert soundness_error(model, plan, inputs, "eval") <= TOLERANCE
    if not frozen:
        assert soundness_error(model, plan, inputs, "train") <= TOLERANCE
    plan.rescale(draw_log_scales(plan))
    moved = {name for name, value in state_of(model).items() if not torch.equal(value, saved[name])}
    statistics = {name for name in moved if "running" in name or "num_batches" in name}
    assert statistics == ({"1.running_mean", "4.running_mean"} if frozen else set())


def test_skipped_batch_norm_is_said_to_be_inexact() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)).double()
    inputs = (torch.randn(4, 3, 9, 8, dtype=torch.float64),)
    randomise(model, inputs, seed=2)
    plan = fxenorm.analyze(model, inputs, batchnorm="skip")
    assert plan.num_scales == 5 and not plan.exact and any("skip" in reason for reason in plan.inexact_reasons)
    saved = state_of(model)
    plan.rescale(draw_log_scales(plan))
    assert all(torch.equal(value, saved[name]) for name, value in state_of(model).items() if name.startswith("1."))
    model.load_state_dict(saved)
    assert soundness_error(model, plan, inputs) > 1e-3, "control: skipping changes the function"


def test_skipped_biases_are_said_to_be_inexact() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inputs = (torch.randn(4, 4, dtype=torch.float64),)
    randomise(model, seed=2)
    plan = fxenorm.analyze(model, inputs, biases="skip")
    assert plan.num_scales == 5 and not plan.exact and any("bias" in reason for reason in plan.inexact_reasons)
    assert not any("bias" in name for name in plan.exponents)
    assert soundness_error(model, plan, inputs) > 1e-3

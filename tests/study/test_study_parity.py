"""With the options of the release, training on the two released architectures follows plain loops over its formulas.

With weights W_0 ... W_{n-1} in the order of the layers, for j = 0 ... n-3: d_j = sqrt(R_{j+1} / (c L_j)), L_j the norms of the
rows of W_j, R_{j+1} those of the columns of W_{j+1}, all from the weights before the cycle; then W_j's rows times d_j and
W_{j+1}'s columns divided by it. In the convolutional network, momentum goes the other way; in the other it stays.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from study.data.task import Task
from study.methods import Method, released
from study.networks.build import layers_of
from study.training import Training, train
from torch import nn

from ..helpers import relative_difference
from .made_up import small, small_task

MLP: dict[str, Any] = {"depth": 15, "width": 24, "bias": False, "batch": 32, "rate": 0.1, "momentum": 0.0}
CONV: dict[str, Any] = {"experiment": "conv", "width": 1 / 16, "batch": 8, "rate": 0.05, "momentum": 0.9}
CASES = [
    pytest.param(MLP, 1.2, id="mlp"),
    pytest.param({**MLP, "momentum": 0.9}, 1.2, id="mlp with momentum"),
    pytest.param(CONV, 1.1, id="conv"),
]


def task_of(settings: dict[str, Any]) -> Task:
    """Images of 3 × 28 × 28 for the convolutional network, smaller ones for the other."""
    return small_task(28, 3) if settings.get("experiment") == "conv" else small_task(8, 3)


def first_dimension(vector: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One factor an output channel, shaped to multiply a weight."""
    return vector.reshape(-1, *[1] * (weight.ndim - 1))


def second_dimension(vector: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One factor an input channel."""
    return vector.reshape(1, -1, *[1] * (weight.ndim - 2))


@torch.no_grad()
def loop_cycle(weights: list[nn.Parameter], buffers: list[torch.Tensor], c: float, move_buffers: bool) -> None:
    """One cycle of the formulas above, channel by channel sums written out."""
    factors = []
    for low, high in pairwise(weights[:-1]):
        left = torch.stack([row.square().sum().sqrt() for row in low])
        right = torch.stack([column.square().sum().sqrt() for column in high.transpose(0, 1)])
        factors.append((right / (c * left)).sqrt())
    for j, d in enumerate(factors):
        weights[j].mul_(first_dimension(d, weights[j]))
        weights[j + 1].div_(second_dimension(d, weights[j + 1]))
        if move_buffers:
            buffers[j].div_(first_dimension(d, buffers[j]))
            buffers[j + 1].mul_(second_dimension(d, buffers[j + 1]))


class Loop:
    """SGD and the cycle on a copy of a network, without any optimizer class."""

    def __init__(self, model: nn.Module, settings: dict[str, Any], c: float) -> None:
        self.model, self.settings, self.c = copy.deepcopy(model), settings, c
        self.buffers = {id(p): torch.zeros_like(p) for p in self.model.parameters()}

    def step(self, x: torch.Tensor, classes: torch.Tensor, rate: float) -> None:
        """One step: v <- momentum v + gradient + decay w, w <- w - rate v, then a cycle."""
        loss = nn.functional.cross_entropy(self.model(x), classes)
        parameters = list(self.model.parameters())
        with torch.no_grad():
            for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                buffer = self.buffers[id(p)]
                buffer.mul_(self.settings["momentum"]).add_(gradient + 1e-3 * p)
                p.sub_(rate * buffer)
        self.cycle()

    def cycle(self) -> None:
        """The cycle alone."""
        weights = [layer.weight for layer in layers_of(self.model)]
        loop_cycle(weights, [self.buffers[id(w)] for w in weights], self.c, self.settings.get("experiment") == "conv")


@dataclass(frozen=True)
class Compared(Method):
    """The released arm, that hands each step to a watcher."""

    inner: Any = None
    watch: Any = None

    def before_training(self, training: Training) -> None:
        self.watch(training, 0)

    def after_step(self, training: Training, step: int) -> None:
        self.inner.after_step(training, step)
        self.watch(training, step)


def compare(settings: dict[str, Any], c: float, dtype: str, watch: Any) -> None:
    """Trains twenty steps by the tool, and calls `watch(training, step)` before the first and after each."""
    inner = released(c, settings.get("experiment", "mlp"))
    arm = Compared("compared", norm="batchnorm", inner=inner, watch=watch)
    train([small(arm, dtype=dtype, steps=20, **settings)], task_of(settings))


@pytest.mark.parametrize(("settings", "c"), CASES)
def test_twenty_steps_in_float64_match_plain_loops(settings: dict[str, Any], c: float, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[Loop] = []
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(
        "study.training.Training.losses",
        lambda self, outputs, x, y, old=Training.losses: (
            self.model.training and batches.append((x[0], y[0])),
            old(self, outputs, x, y),
        )[1],
    )
    moved = []

    def watch(training: Training, step: int) -> None:
        if step == 0:
            loops.append(Loop(training.model.train(), settings, c))
            return
        before = layers_of(loops[0].model)[0].weight.detach().clone()
        loops[0].step(*batches[-1], rate=settings["rate"] * (1 - (step - 1) / 20))
        moved.append(float((layers_of(loops[0].model)[0].weight.detach() / before - 1).abs().max()))
        for (name, mine), other in zip(training.model.named_parameters(), loops[0].model.parameters(), strict=True):
            assert relative_difference(other.detach(), mine.detach()) < 1e-6, (step, name)
            if settings["momentum"]:
                buffer = training.optimizer.state[mine]["momentum_buffer"]
                assert relative_difference(loops[0].buffers[id(other)], buffer) < 1e-6, (step, name)

    compare(settings, c, "float64", watch)
    assert len(moved) == 20 and max(moved) > 1e-2, "control: something moved"


@pytest.mark.parametrize(("settings", "c"), CASES)
def test_each_cycle_in_float32_matches_from_equal_weights(settings: dict[str, Any], c: float) -> None:
    """Twenty float32 steps of the deep network are comparable by nobody; a cycle is."""
    worst, count = [0.0], [0]

    @dataclass(frozen=True)
    class EachCycle(Compared):
        def after_step(self, training: Training, step: int) -> None:
            loop = Loop(training.model, settings, c)
            for p, mine in zip(loop.model.parameters(), training.model.parameters(), strict=True):
                if settings["momentum"]:
                    loop.buffers[id(p)].copy_(training.optimizer.state[mine]["momentum_buffer"])
            loop.cycle()
            self.inner.after_step(training, step)
            count[0] += 1
            for p, mine in zip(loop.model.parameters(), training.model.parameters(), strict=True):
                worst[0] = max(worst[0], float(relative_difference(p.detach(), mine.detach())))
                if settings["momentum"]:
                    buffer = training.optimizer.state[mine]["momentum_buffer"]
                    worst[0] = max(worst[0], float(relative_difference(loop.buffers[id(p)], buffer)))

    inner = released(c, settings.get("experiment", "mlp"))
    arm = EachCycle("each", norm="batchnorm", inner=inner, watch=lambda training, step: None)
    train([small(arm, steps=20, **settings)], task_of(settings))
    assert count == [20] and worst[0] < 1e-6

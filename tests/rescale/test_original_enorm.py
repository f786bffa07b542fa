"""Configured as the original, a plan follows the original's update, written here from its formulas alone.

With 0-based weights W_0 ... W_{n-1}, L_j the norms of W_j's rows (output channels) and R_{j+1} the norms of W_{j+1}'s
columns (input channels): d_j = sqrt(R_{j+1} / (c L_j)) for j = 0 ... n-3 (the last pair is skipped), every norm taken
before any weight is scaled; W_j times d_j on its outputs, W_{j+1} divided by d_j on its inputs; the momentum buffer is
divided by d_j on outputs and multiplied by d_j on inputs. (ENorm, Stock et al., ICLR 2019, section 3, and its release.)
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm

from ..helpers import generator, outputs, relative_difference

ORIGINAL: dict[str, Any] = {"batchnorm": "skip", "biases": "skip", "balance_last": False, "solver": "jacobi"}


def fully_connected() -> nn.Sequential:
    """Five layers, a BatchNorm after every hidden one."""
    widths, layers = (9, 8, 7, 6, 5), []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], 4, bias=False))


def convolutional() -> nn.Sequential:
    """Nine layers after CIFAR-NV: a BatchNorm after the third and the sixth, the released network's border on the last."""

    def block(before: int, after: int, kernel: int = 3, padding: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(before, after, kernel, padding=padding, bias=False), nn.ReLU()]

    def third(before: int, after: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        ]

    return nn.Sequential(
        *block(3, 5), *block(5, 6), *third(6, 7),
        *block(7, 8), *block(8, 9), *third(9, 10),
        *block(10, 11), *block(11, 6, 1, 0), *block(6, 4, 1, 1),
        nn.AvgPool2d(5, 5), nn.Flatten(),
    )  # fmt: skip


NETWORKS = {"fully_connected": (fully_connected, (16, 9), 5), "convolutional": (convolutional, (4, 3, 28, 28), 9)}


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """The weights of the layers, in order."""
    return [module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


@torch.no_grad()
def original_cycle(weights: list[nn.Parameter], optimizer: torch.optim.SGD, c: float, *, moves_momentum: bool = True) -> None:
    """One cycle of the original, on the weights and on their momentum, which its release leaves alone in linear layers."""
    d = []
    for left, right in pairwise(weights[:-1]):
        rows = left.flatten(1).norm(dim=1)
        columns = right.transpose(0, 1).flatten(1).norm(dim=1)
        d.append((columns / (c * rows)).sqrt())
    for j, factor in enumerate(d):
        outer = [-1] + [1] * (weights[j].ndim - 1)
        inner = [1, -1] + [1] * (weights[j + 1].ndim - 2)
        weights[j].mul_(factor.view(outer))
        weights[j + 1].div_(factor.view(inner))
        for weight, scale in ((weights[j], 1 / factor.view(outer)), (weights[j + 1], factor.view(inner))):
            buffer = optimizer.state.get(weight, {}).get("momentum_buffer")
            if buffer is not None and moves_momentum:
                buffer.mul_(scale)


def sgd_step(model: nn.Module, optimizer: torch.optim.SGD, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """One step on the cross-entropy."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("c", [1.0, 1.2])
@pytest.mark.parametrize(("momentum", "state"), [(0.0, "reexpress"), (0.9, "reexpress"), (0.9, "keep")])
@pytest.mark.parametrize("network", NETWORKS)
def test_ten_steps_follow_the_original(network: str, momentum: float, state: Any, c: float) -> None:
    build, shape, layers = NETWORKS[network]
    torch.manual_seed(0)
    ours = build().double()
    theirs = copy.deepcopy(ours)
    plan = fxenorm.analyze(ours, torch.randn(shape, dtype=torch.float64), p=2, c=c, **ORIGINAL)
    settings = {"lr": 0.05, "momentum": momentum, "weight_decay": 1e-3}
    our_sgd, their_sgd = torch.optim.SGD(ours.parameters(), **settings), torch.optim.SGD(theirs.parameters(), **settings)
    assert len(weights_of(theirs)) == layers
    random = generator(1)
    moved = 0.0
    for _ in range(10):
        inputs = torch.randn(shape, generator=random, dtype=torch.float64)
        labels = torch.randint(0, 4, (shape[0],), generator=random)
        for model, optimizer in ((ours, our_sgd), (theirs, their_sgd)):
            sgd_step(model, optimizer, inputs, labels)
        before = weights_of(theirs)[0].detach().clone()
        plan.step(our_sgd, state=state)
        original_cycle(weights_of(theirs), their_sgd, c, moves_momentum=state == "reexpress")
        moved = max(moved, (weights_of(theirs)[0] / before - 1).abs().max().item())
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        for mine, other in zip(weights_of(ours), weights_of(theirs), strict=True):
            if momentum:
                buffers = our_sgd.state[mine]["momentum_buffer"], their_sgd.state[other]["momentum_buffer"]
                torch.testing.assert_close(*buffers, rtol=1e-6, atol=1e-12)
    assert moved > 1e-2, "control: the cycles did something"


def test_original_leaves_the_last_layer_and_the_norms_alone() -> None:
    torch.manual_seed(0)
    model = fully_connected().double()
    plan = fxenorm.analyze(model, torch.randn(16, 9, dtype=torch.float64), **ORIGINAL)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    plan.step(cycles=5)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, saved[name])}
    assert changed == {"1.weight", "4.weight", "7.weight", "10.weight"}  # the last is 13
    assert not plan.exact


def test_original_changes_the_function_and_the_default_does_not() -> None:
    """The reason for the default: behind a BatchNorm the original divides the next layer only in effect."""
    inputs = (torch.randn(16, 9, dtype=torch.float64, generator=generator(3)),)
    differences = {}
    for name, options in {"original": ORIGINAL, "default": {}}.items():
        torch.manual_seed(0)
        model = fully_connected().double()
        plan = fxenorm.analyze(model, inputs, **options)
        before = outputs(model, inputs, "train")
        plan.step()
        differences[name] = relative_difference(before, outputs(model, inputs, "train"))
    assert differences["default"] <= 1e-10 < 1e-2 < differences["original"]


def test_two_layers_are_never_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    saved = [weight.detach().clone() for weight in model.parameters()]
    with pytest.warns(fxenorm.FxenormWarning, match="moved nothing.*balance_last=False"):
        fxenorm.analyze(model, torch.randn(2, 4), **ORIGINAL).step()
    assert all(torch.equal(old, new) for old, new in zip(saved, model.parameters(), strict=True))

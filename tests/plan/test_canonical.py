"""`fxenorm.canonical`: models of one function that differ by a rescaling become the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxenorm

from ..helpers import draw_log_scales, outputs, randomise, relative_difference, state_of


def convolutions(transposed: bool = False, bias: bool = True) -> nn.Sequential:
    """Convolutions, grouped ones among them, each with a BatchNorm behind it."""
    layer = nn.ConvTranspose2d if transposed else nn.Conv2d
    return nn.Sequential(
        *(layer(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU()),
        *(layer(8, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 2)),
    )


NETWORKS = {
    "chain": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(2)),
    "norms": convolutions,
    "no biases": lambda: convolutions(bias=False),
    "transposed": lambda: convolutions(transposed=True),
}
X = torch.randn(3, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_models_of_one_function_become_the_same_weights(name: str, frozen: bool) -> None:
    model = NETWORKS[name]().double()
    model(X)  # shapes of lazy layers
    model = randomise(model, seed=1).eval()
    other = copy.deepcopy(model)
    # Scales in front of a norm move with its running statistics.
    plan = fxenorm.analyze(other, X, batchnorm="frozen", modes="eval")
    plan.rescale(draw_log_scales(plan))
    assert relative_difference(outputs(model, (X,)), outputs(other, (X,))) < 1e-10
    if frozen:
        model[0].weight.requires_grad_(False)
    before, flags = state_of(model), [parameter.requires_grad for parameter in model.parameters()]
    one, two = fxenorm.canonical(model, X), fxenorm.canonical(other, X)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[key], rtol=1e-7, atol=1e-9)
    assert relative_difference(outputs(model, (X,)), outputs(one, (X,))) < 1e-10
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in one.modules())
    assert not one.training and one[0].weight.requires_grad is not frozen
    assert all(torch.equal(value, before[key]) for key, value in state_of(model).items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_a_norm_that_cannot_be_folded_stays() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    model = randomise(model, seed=2).eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    made = fxenorm.canonical(model, x)
    assert relative_difference(outputs(model, (x,)), outputs(made, (x,))) < 1e-10
    assert sum(isinstance(module, nn.BatchNorm1d) for module in made.modules()) == 2


class OwnNorm(nn.BatchNorm1d):
    """Does more than its kind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).abs()


class OwnLayer(nn.Module):
    """A linear layer that is no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight).relu() - nn.functional.linear(x, -self.weight).relu()


@pytest.mark.parametrize(
    ("layer", "norm"),
    [(lambda: nn.Linear(4, 8), lambda: OwnNorm(8)), (OwnLayer, lambda: nn.BatchNorm1d(8)), (OwnLayer, lambda: OwnNorm(8))],
    ids=["norm", "layer", "both"],
)
def test_classes_of_a_user_are_not_folded(layer: Callable[[], nn.Module], norm: Callable[[], nn.Module]) -> None:
    """Nobody knows what else they do; the model is balanced with the norm where it is."""
    model = randomise(nn.Sequential(layer(), norm(), nn.ReLU(), nn.Linear(8, 2)).double(), seed=2).eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    made = fxenorm.canonical(model, x)
    assert [type(module) for module in made] == [type(module) for module in model]
    assert relative_difference(outputs(model, (x,)), outputs(made, (x,))) < 1e-10

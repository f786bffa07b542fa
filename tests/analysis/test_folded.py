"""batchnorm="folded": the norms are those of the weights that folding would give, without touching the graph.

After ``analyze(m, p=math.inf, batchnorm="folded").balance()`` and folding by torch itself, the largest weight that writes
a channel equals the largest weight that reads it (cross-layer equalisation, Nagel et al., ICCV 2019, section 4.1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fxenorm

from ..helpers import TOLERANCE, generator, outputs, randomise, relative_difference, state_of

INPUTS = (torch.randn(4, 3, 9, 10, dtype=torch.float64, generator=generator(0)),)


def fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The layer that both make in eval mode, folded by torch."""
    return fuse_conv_bn_eval(copy.deepcopy(conv).eval(), copy.deepcopy(norm).eval())


def written(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """(out,) the largest weight of each output channel."""
    return layer.weight.detach().flatten(1).abs().amax(1)


def read(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """(in,) the largest weight that reads each input channel; depthwise layers have one row a channel."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        assert layer.groups == layer.in_channels
        return layer.weight.detach().reshape(layer.in_channels, -1).abs().amax(1)
    return layer.weight.detach().transpose(0, 1).flatten(1).abs().amax(1)


def largest(*ranges: torch.Tensor) -> torch.Tensor:
    """The largest per channel over several layers."""
    return torch.stack(ranges).amax(0)


def assert_equal_ranges(out: torch.Tensor, into: torch.Tensor) -> None:
    """To 1e-6 per channel."""
    torch.testing.assert_close(out, into, rtol=1e-6, atol=0)


def chain(bias: bool = False) -> nn.Sequential:
    """Three times convolution, norm, ReLU, then a convolution."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 7, 1, bias=bias), nn.BatchNorm2d(7), nn.ReLU(),
        nn.Conv2d(7, 2, 1, bias=bias),
    )  # fmt: skip
    return randomise(model.double(), INPUTS, seed=1)


def balanced(model: nn.Module, inputs: tuple[torch.Tensor, ...] = INPUTS, **options: object) -> fxenorm.Plan:
    """Balances for equal ranges, and checks that both modes' outputs stay and no statistic moves."""
    before = {mode: outputs(model, inputs, mode) for mode in ("eval", "train")}
    statistics = {name: value for name, value in state_of(model).items() if "running" in name}
    plan = fxenorm.analyze(model, inputs, p=math.inf, batchnorm="folded", **options)
    result = plan.balance(tol=1e-9)
    assert result.converged and not result.held
    for mode, expected in before.items():
        assert relative_difference(expected, outputs(model, inputs, mode)) <= TOLERANCE
    assert all(torch.equal(value, state_of(model)[name]) for name, value in statistics.items())
    return plan


@pytest.mark.parametrize("bias", [False, True])
def test_ranges_agree_on_a_chain(bias: bool) -> None:
    model = chain(bias)
    start = fused(model[0], model[1]), fused(model[3], model[4])
    assert (written(start[0]) / read(start[1])).log().abs().max() > 0.1, "control: unequal at the start"
    plan = balanced(model)
    assert plan.num_scales == 5 + 6 + 7
    layers = [fused(model[i], model[i + 1]) for i in (0, 3, 6)] + [model[9]]
    for left, right in pairwise(layers):
        assert_equal_ranges(written(left), read(right))


def test_ranges_agree_on_a_chain_with_biases_counted() -> None:
    """Counted with the weights of its channel: the bias that folding gives."""
    model = chain()
    balanced(model, biases="count")
    layers = [fused(model[i], model[i + 1]) for i in (0, 3, 6)] + [model[9]]
    for left, right in pairwise(layers):
        assert_equal_ranges(largest(written(left), left.bias.detach().abs()), read(right))


def test_ranges_agree_on_a_depthwise_chain() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 5, 3, groups=5, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 2, 1),
    )  # fmt: skip
    randomise(model.double(), INPUTS, seed=1)
    balanced(model)
    layers = [fused(model[i], model[i + 1]) for i in (0, 3, 6, 9)] + [model[12]]
    for left, right in pairwise(layers):
        assert_equal_ranges(written(left), read(right))


def test_ranges_agree_on_resnet18() -> None:
    torchvision = pytest.importorskip("torchvision")
    inputs = (torch.randn(3, 3, 32, 40, dtype=torch.float64, generator=generator(0)),)
    model = randomise(torchvision.models.resnet18().double(), inputs, seed=1)
    balanced(model, inputs)

    streams = [[fused(model.conv1, model.bn1)]]  # the layers that write each stage's stream
    readers: list[list[nn.Module]] = [[]]
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            first, second = fused(block.conv1, block.bn1), fused(block.conv2, block.bn2)
            assert_equal_ranges(written(first), read(second))
            readers[-1].append(first)
            if block.downsample is None:
                streams[-1].append(second)
            else:
                skip = fused(*block.downsample)
                readers[-1].append(skip)
                streams.append([second, skip])
                readers.append([])
    readers[-1].append(model.fc)
    assert [len(stage) for stage in streams] == [3, 3, 3, 3] and [len(stage) for stage in readers] == [4, 3, 3, 2]
    for writing, reading in zip(streams, readers, strict=True):
        assert_equal_ranges(largest(*map(written, writing)), largest(*map(read, reading)))


def test_transposed_and_linear_layers_fold_too() -> None:
    """By definition: row i times |gamma_i| / sqrt(variance_i + eps)."""
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(),
        nn.Linear(5, 4),
    )  # fmt: skip
    randomise(model.double(), INPUTS, seed=1)
    balanced(model)
    factors = [model[i].weight.detach().abs() / (model[i].running_var + model[i].eps).sqrt() for i in (1, 4, 9)]
    first = model[0].weight.detach() * factors[0].view(1, -1, 1, 1)  # (in, out, ...)
    second = model[3].weight.detach().reshape(2, 3, 4, 3, 3) * factors[1].view(2, 1, 4, 1, 1)  # (group, in, out, ...)
    third = model[8].weight.detach() * factors[2].view(-1, 1)
    assert_equal_ranges(first.abs().amax((0, 2, 3)), second.abs().amax((2, 3, 4)).reshape(-1))
    assert_equal_ranges(second.abs().amax((1, 3, 4)).reshape(-1), third.abs().amax(0))
    assert_equal_ranges(third.abs().amax(1), read(model[11]))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_norm_is_that_of_the_folded_weights(p: float) -> None:
    model = chain()
    plan = fxenorm.analyze(model, INPUTS, p=p, batchnorm="folded")

    def folded() -> float:
        layers = [fused(model[i], model[i + 1]) for i in (0, 3, 6)] + [model[9]]
        return sum(layer.weight.detach().abs().pow(p).sum().item() for layer in layers) ** (1 / p)

    assert plan.norm().item() == pytest.approx(folded(), rel=1e-10)
    plan.step()
    assert plan.norm().item() == pytest.approx(folded(), rel=1e-10)
    assert plan.num_scales == fxenorm.analyze(model, INPUTS, p=p).num_scales, "the same scales as affine"


def test_affine_with_infinite_p_names_folded() -> None:
    with pytest.warns(fxenorm.FxenormWarning, match="folded"):
        fxenorm.analyze(chain(), INPUTS, p=math.inf)


class ReadElsewhere(nn.Module):
    """A chain whose first convolution, or its norm's parameter, has another reader, so that it cannot be folded."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)
        self.norm, self.side = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        y = self.last(self.norm(h).relu())
        if self.how == "output":
            return y + self.side(h.relu())
        if self.how == "layer":
            return y + self.side(self.first(2 * x).relu())
        if self.how == "norm":
            return y + self.side(self.norm(h.relu()))
        return y + self.side((h * 0 + 1) * self.norm.weight[:, None, None]) if self.how == "gain" else y


@pytest.mark.parametrize("how", ["output", "layer", "norm", "gain"])
def test_a_norm_that_cannot_be_folded_is_counted_as_it_is(how: str) -> None:
    """With the layer's own weights and gamma, as under "affine": what others read must not be taken times a folded norm."""
    model = randomise(ReadElsewhere(how).double(), INPUTS, seed=1)
    folded, affine = (fxenorm.analyze(model, INPUTS, batchnorm=name) for name in ("folded", "affine"))  # type: ignore[arg-type]
    assert folded.norm().item() == pytest.approx(affine.norm().item(), rel=1e-12)
    alone = randomise(ReadElsewhere("").double(), INPUTS, seed=1)
    folded, affine = (fxenorm.analyze(alone, INPUTS, batchnorm=name) for name in ("folded", "affine"))  # type: ignore[arg-type]
    assert folded.norm().item() != pytest.approx(affine.norm().item(), rel=1e-3), "control: without another reader it is folded"


class Middle(nn.Module):
    """A layer, a function of it and a norm, a layer."""

    def __init__(self, function: Callable[[Middle, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self, x))


FOLDABLE: dict[str, tuple[Callable[[Middle, torch.Tensor], torch.Tensor], bool]] = {
    "plain": (lambda m, x: m.norm(m.first(x)), True),
    "without a bias": (lambda m, x: m.norm(nn.functional.linear(x, m.first.weight)), True),
    "something between": (lambda m, x: m.norm(m.first(x).relu()), False),
    "bias read elsewhere": (lambda m, x: m.norm(m.first(x)) + m.first.bias, False),
    "computed weight": (lambda m, x: m.norm(nn.functional.linear(x, 2 * m.first.weight, m.first.bias)), False),
    "computed bias": (lambda m, x: m.norm(nn.functional.linear(x, m.first.weight, 2 * m.first.bias)), False),
    "computed gamma": (
        lambda m, x: nn.functional.batch_norm(
            m.first(x), m.norm.running_mean, m.norm.running_var, 2 * m.norm.weight, m.norm.bias, m.norm.training
        ),
        False,
    ),
    "positions as channels": (lambda m, x: m.norm(m.first(x[:, None].expand(-1, 5, -1)))[:, 0], False),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_only_what_folding_could_fold_is_taken_as_folded(name: str) -> None:
    function, foldable = FOLDABLE[name]
    plan = fxenorm.analyze(randomise(Middle(function).double()), torch.randn(7, 4, dtype=torch.float64), batchnorm="folded")
    assert [(fold.weight, fold.gamma, fold.mean) for fold in plan.symmetry.folds] == (
        [("first.weight", "norm.weight", "norm.running_mean")] if foldable else []
    )

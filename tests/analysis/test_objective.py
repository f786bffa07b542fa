"""What is counted, with which weight, and that folding is what torch's own folding gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fxenorm.analysis.counted import CountedTensors, count_tensors
from fxenorm.analysis.options import Options
from fxenorm.errors import OptionError
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.symmetry.symmetry import NormFold, Symmetry
from fxenorm.weights.tensors import named_tensors

from ..hand_made import Builder, chain

BACKEND = EagerBackend()


def layer_of_norms(convolution: nn.Module, fold: NormFold, channels: int, affine: bool = True) -> Symmetry:
    """A convolution and a BatchNorm whose gamma and beta carry the scales of the output."""
    builder = Builder()
    group = builder.group(channels)
    for name, tensor in convolution.named_parameters(prefix="conv"):
        builder.parameter(name, tensor.shape, "weight" if name.endswith("weight") else "bias")
    if affine:
        for name, role in (("norm.weight", "gamma"), ("norm.bias", "bias")):
            builder.parameter(name, (channels,), role, (1, builder.ids(group, (channels,))))  # type: ignore[arg-type]
    builder.linear("head", 2, channels, None, group)
    return builder.build(folds=(fold,))


CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(3, 6, 3, bias=False), {}),
    "with bias": (lambda: nn.Conv2d(3, 6, 3), {}),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), {"groups": 2}),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), {"groups": 6}),
    "transposed": (lambda: nn.ConvTranspose2d(3, 6, 3), {"output_axis": 1, "transposed": True}),
    "grouped transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), {"output_axis": 1, "transposed": True, "groups": 2}),
}


@torch.no_grad()
def folded_case(name: str) -> tuple[nn.Sequential, Symmetry]:
    """A convolution with a BatchNorm of random statistics, and its symmetry."""
    build, changes = CONVOLUTIONS[name]
    model = nn.Sequential()
    model.add_module("conv", build())
    model.add_module("norm", nn.BatchNorm2d(6))
    model.add_module("head", nn.Linear(6, 2, bias=False))
    model.double().eval()
    for tensor in (*model.norm.parameters(), model.norm.running_mean):
        tensor.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    bias = None if model.conv.bias is None else "conv.bias"
    values: dict[str, Any] = {"output_axis": 0, "transposed": False, "groups": 1, **changes}
    fold = NormFold(
        "conv.weight",
        bias,
        values["output_axis"],
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        model.norm.eps,
        values["transposed"],
        values["groups"],
    )
    return model, layer_of_norms(model.conv, fold, 6)


def sums_of(objective: CountedTensors, model: nn.Module) -> Any:
    """N and P at the present weights."""
    return BACKEND.reduce(objective.program, *objective.gather(named_tensors(model)))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("biases", ["scale", "count"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_folded_norms_are_those_of_the_folded_layer(name: str, biases: str, p: float) -> None:
    model, symmetry = folded_case(name)
    objective = count_tensors(symmetry, Options(p=p, batchnorm="folded", biases=biases), {})
    _, changes = CONVOLUTIONS[name]
    if name == "grouped transposed":  # torch's folding does not know these: scale the two blocks by hand
        gain = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        weight = model.conv.weight.detach() * gain.detach().view(2, 1, 3, 1, 1).expand(2, 2, 3, 1, 1).reshape(4, 3, 1, 1)
        bias = ((model.conv.bias - model.norm.running_mean) * gain + model.norm.bias).detach()
    else:
        fused = fuse_conv_bn_eval(model.conv, model.norm, transpose="transposed" in name)
        weight, bias = fused.weight.detach(), fused.bias.detach()
    if changes.get("transposed"):  # (in, out / groups, ...) -> one row an output channel
        groups = changes.get("groups", 1)
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    rows = weight.flatten(1).abs()
    if biases == "count":
        rows = torch.cat([rows, bias.abs()[:, None]], 1)
    expected = rows.amax(1) if math.isinf(p) else (rows**p).sum(1)
    sums = sums_of(objective, model)
    torch.testing.assert_close(sums.log_positive.exp(), expected)
    head = model.head.weight.detach().abs()
    torch.testing.assert_close(sums.log_negative.exp(), head.amax(0) if math.isinf(p) else (head**p).sum(0))
    layers = [item.layer for item in objective.tensors]
    assert set(layers) == {"conv", "head"} and len(layers) == (3 if biases == "count" else 2)


def test_affine_counts_gamma_instead() -> None:
    model, symmetry = folded_case("plain")
    objective = count_tensors(symmetry, Options(), {})
    assert [item.parameter for item in objective.tensors] == ["norm.weight", "head.weight"]
    torch.testing.assert_close(sums_of(objective, model).log_positive.exp(), model.norm.weight.detach() ** 2)
    counted = count_tensors(symmetry, Options(biases="count"), {}).tensors
    assert [item.parameter for item in counted] == ["norm.weight", "norm.bias", "head.weight"]


def test_folding_a_norm_without_gamma_takes_the_weights_own_scales() -> None:
    """A norm without affine whose statistics move: the scale of the layer's output passes on."""
    builder = Builder()
    group = builder.group(3)
    builder.parameter("conv.weight", (3, 2), "weight", (1, builder.ids(group, (3, 1))))
    builder.linear("head", 2, 3, None, group)
    fold = NormFold("conv.weight", None, 0, None, None, "norm.running_mean", "norm.running_var", 1e-5)
    symmetry = builder.build(folds=(fold,))
    tensors = {
        "conv.weight": torch.randn(3, 2).double(),
        "head.weight": torch.randn(2, 3).double(),
        "norm.running_mean": torch.zeros(3).double(),
        "norm.running_var": torch.rand(3).double() + 0.5,
    }
    objective = count_tensors(symmetry, Options(batchnorm="folded"), {})
    sums = BACKEND.reduce(objective.program, *objective.gather(tensors))
    expected = (tensors["conv.weight"] ** 2).sum(1) / (tensors["norm.running_var"] + 1e-5)
    torch.testing.assert_close(sums.log_positive.exp(), expected)


def test_opposite_exponents_of_weight_and_gamma_cancel() -> None:
    """Statistics that move: the weight carries s, gamma t - s, and the folded weight t alone."""
    builder = Builder()
    before, after = builder.group(3), builder.group(3)
    builder.parameter("conv.weight", (3, 2), "weight", (1, builder.ids(before, (3, 1))))
    builder.parameter("norm.weight", (3,), "gamma", (1, builder.ids(after, (3,))), (-1, builder.ids(before, (3,))))
    builder.linear("head", 2, 3, None, after)
    fold = NormFold("conv.weight", None, 0, "norm.weight", None, "norm.running_mean", "norm.running_var", 1e-5)
    symmetry = builder.build(folds=(fold,))
    program = count_tensors(symmetry, Options(batchnorm="folded"), {}).program
    assert program.counted_positive.tolist() == [False] * 3 + [True] * 3
    assert program.counted_negative.tolist() == [False] * 3 + [True] * 3


def test_roles_decide_what_is_counted() -> None:
    builder = Builder()
    group = builder.group(2)
    for role in ("weight", "gamma", "bias", "slope", "other"):
        builder.parameter(role, (2,), role, (1, builder.ids(group, (2,))))  # type: ignore[arg-type]
    builder.parameter("without scales", (2,), "weight")
    builder.parameter("buffer", (2,), "weight", (1, builder.ids(group, (2,))))
    symmetry = builder.build(buffers=frozenset({"buffer"}))
    names = [item.parameter for item in count_tensors(symmetry, Options(), {}).tensors]
    assert names == ["weight", "gamma"]
    names = [item.parameter for item in count_tensors(symmetry, Options(biases="count"), {}).tensors]
    assert names == ["weight", "gamma", "bias"]


def test_layer_weights() -> None:
    symmetry = chain([4, 5, 6, 2], bias=True)
    depths = {"fc1": 0, "fc2": 1, "fc3": 2}

    def weights(**options: Any) -> list[float]:
        return [math.exp(item.log_weight) for item in count_tensors(symmetry, Options(**options), depths).tensors]

    assert weights() == [1.0] * 3
    assert weights(p=3, c=1.2) == pytest.approx([1.0, 1.2**-3, 1.2**-6])
    assert weights(c="adaptive") == pytest.approx([1 / 20, 1 / 30, 1 / 12])
    assert weights(c={"fc2": 4}) == pytest.approx([1.0, 4.0, 1.0])
    assert weights(p=math.inf, c=7.0) == [1.0] * 3, "no part at p = inf"
    with pytest.raises(OptionError, match=r"fc9.*fc1, fc2, fc3"):
        count_tensors(symmetry, Options(c={"fc9": 1.0}), depths)


def test_exponents_larger_than_one_and_collisions() -> None:
    """A layer from a stream to itself: its diagonal does not see the stream's own scale."""
    builder = Builder()
    group = builder.group(3)
    ids = builder.ids(group, (3,))
    builder.parameter("mix", (3, 3), "weight", (1, ids[:, None]), (-1, ids[None, :]))
    builder.parameter("square", (3,), "weight", (2, ids))
    builder.parameter("many", (3, 2), "weight", (2, ids[:, None]), (-1, np.array([[0, -1]])))
    program = count_tensors(builder.build(), Options(), {}).program
    tensors = [torch.randn(3, 3).double(), torch.randn(3).double(), torch.randn(3, 2).double()]
    sums = BACKEND.reduce(program, tensors, [None] * 3)
    mix, square, many = (tensor**2 for tensor in tensors)
    off = mix - torch.diag(mix.diagonal())
    positive = off.sum(1) + 2 * square + 2 * many.sum(1)
    positive[0] += (1 - 2) * many[0, 0]  # net exponent 2 - 1 in the colliding entry
    negative = off.sum(0)
    negative[0] += many[1:, 0].sum()
    torch.testing.assert_close(sums.log_positive.exp(), positive)
    torch.testing.assert_close(sums.log_negative.exp(), negative)
    assert program.degree.tolist() == [4.0, 4.0, 4.0], "twice the largest exponent"

"""What ``print(plan)`` shows, and the tables behind it."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxenorm
import fxenorm.text.describe as plan_text
from fxenorm.analysis.held import frozen_names
from fxenorm.text.describe import between
from fxenorm.text.table import Column, broken, table_lines

from ..helpers import mlp


def describe(model: nn.Module, *inputs: torch.Tensor, width: int = 100, **options) -> str:
    plan = fxenorm.analyze(model, inputs or None, **options)
    frozen = frozen_names(model, plan.symmetry)
    return plan_text.describe(plan.rescaler.analysis, type(model).__name__, frozen, width)


def test_a_printed_plan_says_what_it_is():
    text = describe(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)), p=math.inf, biases="count"
    )
    for words in (
        "of Sequential: 4 scales in 1 group, 3 layers",
        "exact",
        "counted: 2 weight tensors; 1 bias",
        "p=inf, biases='count'",
    ):
        assert words in text
    assert "held by the model's outputs: 2 channels" in text and "held by gelu: 5 channels at 1 node" in text


def test_a_printed_plan_reads_no_weight():
    with torch.device("meta"):
        model = mlp(3, 4, 2)
    assert "4 scales in 1 group" in str(fxenorm.analyze(model))


def test_a_printed_plan_of_a_long_model_is_short_and_names_its_ends():
    text = describe(mlp(*[3] * 60))
    assert len(text.splitlines()) < 40
    assert "g0 " in text and f"g{57} " in text and "g40 " not in text
    assert "and 35 more" in text and text.count("chain") == 24 - 1


def test_why_a_plan_is_not_exact_is_printed():
    text = describe(mlp(3, 4, 2), biases="skip")
    assert "not exact: " in text and ", exact" not in text and "biases are left alone" in text


def with_norm(*kinds: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), *(kind(6) for kind in kinds), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Dropout())


class StaysInEval(nn.BatchNorm2d):
    """The usual way to keep a norm's statistics while the model trains."""

    def train(self, mode: bool = True):
        return super().train(False)


@pytest.mark.parametrize(
    ("kinds", "options", "modes"),
    [
        ((nn.BatchNorm2d,), {}, ("eval",)),
        ((StaysInEval, nn.BatchNorm2d), {}, ("eval",)),
        ((nn.BatchNorm2d,), {"modes": "eval"}, ("eval",)),
        ((), {}, ("eval", "train")),
        ((StaysInEval,), {}, ("eval", "train")),
    ],
)
def test_frozen_norms_are_exact_where_all_modes_that_were_asked_for_are_kept(kinds, options, modes):
    model, x = with_norm(*kinds), torch.randn(4, 3, 8, 8)
    plan = fxenorm.analyze(model, x, batchnorm="frozen", **options)
    lost = modes == ("eval",) and not options
    assert plan.modes == modes and plan.exact is not lost and plan.num_scales == 6 * max(1, len(kinds) + bool(kinds))
    assert [reason for reason in plan.inexact_reasons if "eval mode only" in reason] == list(plan.inexact_reasons)
    assert ("not exact: " in str(plan)) is lost and plan.verify(x)
    # The promise is what is measured: a random rescaling of a model that trains.
    model.double().train()[-1].p = 0.0
    with torch.no_grad():
        before = model(x.double())
        plan.rescale(torch.linspace(-1, 1, plan.num_scales, dtype=torch.float64))
        change = float((model(x.double()) - before).abs().max() / before.abs().max())
    assert (change < 1e-12) if "train" in modes else (change > 1e-3)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_keep_to_the_width_and_lose_no_character(width):
    names = [
        "encoder.layers.encoder_layer_11.self_attention.in_proj",
        "a" * 70,
        "short",
        "torchvision/models/resnet.py:285, in forward",
    ]
    columns = [Column("group"), Column("channels", "right"), Column("one", "text"), Column("other", "text")]
    lines = table_lines(columns, [["g1", "1,024", name, other] for name in names for other in names], width)
    assert max(map(len, lines)) <= width
    for name in names:
        for limit in (5, 12, 40):
            assert broken(name, limit).replace("\n", "").replace(" ", "") == name.replace(" ", "")
            assert max(map(len, broken(name, limit).splitlines())) <= limit


@given(st.lists(st.sampled_from(["relu", "add", "view"]), max_size=30))
def test_counting_repetitions_keeps_every_operator(operators):
    text = between(operators)
    unrolled = re.sub(r"\(([^)]*)\) ×(\d+)", lambda match: ", ".join([match[1]] * int(match[2])), text)
    unrolled = re.sub(r"(\w+) ×(\d+)", lambda match: ", ".join([match[1]] * int(match[2])), unrolled)
    assert unrolled == ", ".join(operators)

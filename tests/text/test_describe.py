"""What ``print(plan)`` shows, and the tables behind it."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxenorm
import fxenorm.text.describe as plan_text
from fxenorm.analysis.held import frozen_names
from fxenorm.text.describe import between, ends_of
from fxenorm.text.table import Column, broken, fitting, folded, table_heights, table_lines

from ..helpers import mlp


def describe(model: nn.Module, *inputs: torch.Tensor, width: int = 100, expand: bool = False, **options) -> str:
    plan = fxenorm.analyze(model, inputs or None, **options)
    frozen = frozen_names(model, plan.symmetry)
    return plan_text.describe(plan.rescaler.analysis, type(model).__name__, frozen, width, expand=expand)


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
    assert "fixed by the model's outputs: 2 channels" in text and "fixed by gelu: 5 channels at 1 node" in text


def test_a_printed_plan_reads_no_weight():
    with torch.device("meta"):
        model = mlp(3, 4, 2)
    assert "4 scales in 1 group" in str(fxenorm.analyze(model))


def test_a_printed_plan_of_a_long_model_is_short_and_names_its_ends():
    """Of equal layers one row, of layers that have nothing in common the first and the last."""
    text = describe(mlp(*[3] * 60))
    assert len(text.splitlines()) < 16
    assert "g0 ... g57  chain    58 × 3  {0,2,...,114} -> {2,4,...,116}" in text
    assert "58 groups, one by one: plan.describe(expand=True)" in text
    layers = {f"{'ab' * (k % 7)}_{'cd' * k}": nn.Linear(4 + k, 5 + k) for k in range(60)}
    text = describe(nn.Sequential(OrderedDict(layers)), width=400)
    assert len(text.splitlines()) < 40
    assert "g0 " in text and "g58 " in text and "g40 " not in text
    assert "and 36 more rows" in text and text.count("chain") == 24 - 1


@pytest.mark.parametrize("width", [80, 200])
def test_an_expanded_plan_has_each_group_and_each_layer(width):
    model = mlp(*[3] * 40)
    plan = fxenorm.analyze(model)
    lines = plan.describe(expand=True, width=width).splitlines()
    for group in plan.groups:
        (line,) = (line for line in lines if line.startswith(f"{group.name} "))
        assert line.split()[1:] == ["chain", "3", ends_of(group, plan.symmetry, "producers")[0], "->", line.split()[-1]]
        assert (line.split()[-1],) == ends_of(group, plan.symmetry, "consumers")
    assert "expand" not in "\n".join(lines) and str(plan) == plan.describe()


class Stream(nn.Module):
    """Many blocks that write to one residual stream and read it, each with a layer of its own."""

    def __init__(self, blocks: int = 12) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 6)}) for _ in range(blocks))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block["down"](block["up"](x).relu())).relu()
        return self.head(x)


def test_a_residual_stream_is_one_row_with_its_writers_and_readers():
    lines = describe(Stream(), width=120).splitlines()
    assert any(line.endswith("6  stem, blocks.{0..11}.down -> blocks.{0..11}.up, head") for line in lines)
    assert any("12 × 8  blocks.{0..11}.up -> .down" in line for line in lines)
    assert lines.index("") + 3 + 2 == next(k for k, line in enumerate(lines) if line.startswith("("))


def test_names_of_a_printed_plan_are_never_broken():
    long = "a_module_with_quite_a_long_name_of_its_own"
    model = nn.Sequential(
        OrderedDict({f"{long}_{side}": Stream(2) if side == "left" else nn.Linear(3, 2) for side in ("left", "right")})
    )
    for width in (40, 80, 200):
        words = set(re.split(r"[ ,\n]+", describe(model, torch.randn(2, 4), width=width, expand=True)))
        assert {f"{long}_left.blocks.{k}.{layer}" for k in range(2) for layer in ("up", "down")} <= words
        assert {f"{long}_left.head", f"{long}_right"} <= words


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


NAMES = [
    "encoder.layers.encoder_layer_11.self_attention.in_proj",
    "a" * 70,
    "short",
    "torchvision/models/resnet.py:285, in forward",
    "stem, body.0, body.1, body.2, body.3, body.4 ->\N{NO-BREAK SPACE}head",
]


@pytest.mark.parametrize("width", [20, 60, 80, 120, 200])
@pytest.mark.parametrize("elastic", [1, 2, 3])
def test_tables_break_no_word_lose_none_and_keep_to_the_width_where_the_words_do(width, elastic):
    columns = [Column("group"), Column("channels", "right"), *(Column(f"column {k}", "text") for k in range(elastic))]
    rows = [["g1", "1,024", *names] for names in itertools.product(NAMES, repeat=elastic)]
    lines = table_lines(columns, rows, width)
    printed = Counter(word for line in lines[2:] for word in line.split())
    assert printed == Counter(word for row in rows for cell in row for word in cell.split())
    assert sum(table_heights(columns, rows, 10**6)) <= len(lines)
    if width >= 17 + elastic * (2 + 72):
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize("limit", [5, 12, 40, 100])
def test_a_cell_is_broken_at_its_blanks_alone(limit):
    for name in NAMES:
        lines = broken(name, limit).split("\n")
        assert " ".join(line.strip() for line in lines) == name.replace("\N{NO-BREAK SPACE}", " ")
        together = [line for line in lines if len(line) > limit and " " in line.strip().removeprefix("-> ")]
        assert together == []


def test_spare_columns_are_left_out_where_there_is_no_room_for_them():
    columns = [Column("name", "text"), Column("first", spare=1), Column("second", spare=2), Column("number", "right")]
    rows = [["a_name_of_many_letters", "one", "two", "3"], ["b", "four", "five", "6"]]
    for width, gone in ((None, []), (100, []), (45, []), (40, ["second"]), (32, ["first", "second"]), (5, ["first", "second"])):
        kept, texts, left_out = fitting(columns, rows, width)
        assert left_out == gone, width
        assert [column.heading for column in kept] == [c.heading for c in columns if c.heading not in gone]
        assert [len(row) for row in texts] == [len(kept)] * 2 and texts[0][-1] == "3"


@given(st.lists(st.sampled_from(["relu", "add", "view"]), max_size=30))
def test_counting_repetitions_keeps_every_operator(operators):
    text = between(operators)
    unrolled = re.sub(r"\(([^)]*)\) ×(\d+)", lambda match: ", ".join([match[1]] * int(match[2])), text)
    unrolled = re.sub(r"(\w+) ×(\d+)", lambda match: ", ".join([match[1]] * int(match[2])), unrolled)
    assert unrolled == ", ".join(operators)


def test_a_stream_that_is_fixed_as_one_says_how_many_ends_are_tied_to_it():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 30), nn.Linear(30, 2)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(h + nn.functional.gelu(h.cumsum(-1)))

    text = describe(Stream(), torch.randn(3, 4))
    assert re.search(r"fixed by gelu: 1 channel, to which \d\d channel ends are tied, at 1 node", text)
    assert "to which" not in describe(nn.Sequential(nn.Linear(4, 30), nn.GELU(), nn.Linear(30, 2)))


def test_one_path_is_not_called_exact_everywhere():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x))) if x.sum() > 0 else self.b(torch.relu(self.a(2 * x)))

    assert ", exact on that path\n" in describe(Branches(), torch.ones(2, 4))
    assert describe(mlp(3, 4, 2), width=200).splitlines()[0].endswith(", exact")


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_left_to_a_terminal_to_break(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal breaks inside names; each line is broken at blanks before, where its width is known."""
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    plan = fxenorm.analyze(model)
    wide = plan.describe(width=1000)
    told = plan.describe(width=width)
    assert max(map(len, told.splitlines())) <= width and told.replace("-", "").split() == wide.replace("-", "").split()
    assert max(map(len, str(plan).splitlines())) > 100  # no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    assert str(plan) == told
    for line in wide.splitlines():
        assert all(len(part) <= width or " " not in part.strip() for part in folded(line, width))

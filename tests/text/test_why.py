"""`plan.why`: every channel end is told once, with who tied or fixed it; wrong names list the nearest."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import BindError, OptionError
from fxenorm.symmetry.account import KINDS
from fxenorm.text.why_words import blocks_of, layer_sentences

from ..account_cases import BY_HAND
from ..symmetry.test_structures import analysed
from ..zoo import CASES
from ..zoo_base import Net

ZOO = sorted(CASES)[::4]


def two(forward: Any, size: int = 8) -> fxenorm.Plan:
    return fxenorm.analyze(Net(forward, a=nn.Linear(4, size), b=nn.Linear(size, 3)), torch.randn(5, 4))


def plan_of(name: str) -> fxenorm.Plan:
    if name in CASES:
        return analysed(name)[1]
    build, inputs, options, _, _ = BY_HAND[name]
    return fxenorm.analyze(build(), inputs, **options)


@pytest.mark.parametrize("name", [*BY_HAND, *ZOO])
def test_all_layers_together_are_the_account(name: str) -> None:
    plan = plan_of(name)
    account, found = plan.account, plan.why()
    assert account is not None
    by_kind: Counter[str] = Counter()
    for row in found.rows:
        by_kind[row.kind] += row.channels
        assert row.channels > 0 and row.side in ("out", "in") and (row.kind == "free") == (row.operator == "")
    wanted = {"free": account.free, **{kind: account.fixed(kind) for kind in KINDS}}
    assert by_kind == {kind: count for kind, count in wanted.items() if count}
    assert sum(layer.channels_out + layer.channels_in for layer in found.layers) == account.total
    assert len({layer.layer for layer in found.layers}) == len(found.layers)
    moving = {row.own for row in found.rows if row.kind in ("free", "tied")}
    assert all(row.tied_to in moving for row in found.rows if row.kind == "tied" and row.tied_to)
    for layer in found.layers:
        one = plan.why(layer.layer)
        assert layer in one.layers and [row for row in one.rows if row.layer == layer.layer] == [
            row for row in found.rows if row.layer == layer.layer
        ]
        assert layer.layer in str(one) and str(one) == str(plan.why(layer.layer))


@pytest.mark.parametrize("name", sorted(CASES))
def test_where_one_side_is_fixed_the_scales_of_the_other_are_the_rank_of_the_exponents(name: str) -> None:
    symmetry = analysed(name)[1].symmetry
    assert symmetry.account is not None
    sides = {(side.parameter, side.side): side for side in symmetry.account.sides}
    for (parameter, where), side in sides.items():
        other = sides.get((parameter, "input" if where == "output" else "output"))
        if other is None or other.scales:
            continue
        rows = np.zeros((*symmetry.shapes[parameter], symmetry.num_scales + 1))
        for coefficient, ids in symmetry.exponents.get(parameter, ()):
            rows += coefficient * np.eye(symmetry.num_scales + 1)[ids]
        rows = np.unique(rows.reshape(-1, symmetry.num_scales + 1)[:, :-1], axis=0)
        assert side.scales == (np.linalg.matrix_rank(rows) if rows.size else 0)


@pytest.mark.parametrize(
    ("forward", "operator"),
    [
        (lambda m, x: m.b(torch.relu(m.a(x)) / torch.relu(m.a(x)).norm()), "linalg_vector_norm"),
        (lambda m, x: m.b(torch.relu(m.a(x)).sum(-1, keepdim=True).expand(-1, 8)), "sum"),
        (lambda m, x: m.b(torch.relu(m.a(x)).cumsum(-1)), "cumsum"),
        (lambda m, x: m.b(torch.relu(m.a(x)).sort(-1).values), "sort"),
    ],
)
def test_a_tie_of_many_channels_is_told_with_the_line(forward: Any, operator: str) -> None:
    answer = two(forward).why("a")
    assert (answer.layers[0].channels_out, answer.layers[0].scales_out) == (8, 1)
    text = str(answer)
    assert " free" not in text and "8 channels share 1 scale: " in text and operator in text and "test_why.py:" in text


def test_layers_that_meet_in_a_sum_are_tied_to_the_first() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        return m.c(torch.relu(h + m.b(h)))

    plan = fxenorm.analyze(Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2)), torch.randn(5, 4))
    rows = {(row.layer, row.side): row for row in plan.why().rows}
    assert (rows["a", "out"].kind, rows["a", "out"].channels) == ("free", 6)
    assert (rows["b", "out"].operator, rows["b", "out"].tied_to, rows["b", "out"].channels) == ("add", "a out", 6)
    assert rows["b", "out"].source.startswith("test_why.py:") and rows["c", "in"].tied_to == "a out"
    assert (rows["a", "in"].kind, rows["a", "in"].source) == ("input", "inputs_0") and rows["c", "out"].kind == "output"
    assert "\n  out  6 free\n  in   4 fixed by the input inputs_0" in str(plan.why("a"))
    layer = plan.why("b").layers[0]
    assert layer.producer_of == layer.consumer_of == ("g0",) and set(layer.with_layers) == {"a", "c"}


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.b(nn.functional.gelu(m.a(x))), "gelu is not homogeneous"),
        (lambda m, x: m.b(torch.special.bessel_j0(m.a(x))), "no scale rule"),
    ],
)
def test_a_barrier_is_told_with_its_line_and_reason(forward: Any, reason: str) -> None:
    plan = two(forward)
    for layer, side in (("a", "out"), ("b", "in")):
        (row,) = (row for row in plan.why(layer).rows if row.side == side)
        assert row.kind == "barrier" and row.channels == 8 and reason in row.reason and row.source.startswith("test_why.py:")
        assert reason in str(plan.why(layer)) and row.source in str(plan.why(layer)) and row.source in str(plan.why())


def test_an_option_is_named() -> None:
    plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), exclude="0")
    assert "6 fixed by an option, exclude" in str(plan.why("0"))


def test_a_name_may_be_a_layer_a_parameter_or_a_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    plan = fxenorm.analyze(model)
    assert plan.why("0.2").layers == plan.why("0.2.weight").layers == plan.why("0.2.bias").layers
    assert [layer.layer for layer in plan.why("0").layers] == ["0.0", "0.2"]
    assert plan.why("") == plan.why() and [layer.layer for layer in plan.why().layers] == ["0.0", "0.2", "2"]


def test_the_second_name_of_a_shared_weight_means_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    plan = fxenorm.analyze(model)
    assert [layer.layer for layer in plan.why("2.weight").layers] == ["0"]


def test_a_wrong_name_lists_the_nearest() -> None:
    plan = fxenorm.analyze(nn.ModuleDict({"m": nn.Linear(4, 4)})["m"])
    with pytest.raises(OptionError, match="layer=3 is not valid"):
        plan.why(3)  # type: ignore[arg-type]
    model = Net(lambda m, x: m.conv2(m.act(m.conv1(x))), conv1=nn.Linear(4, 6), act=nn.ReLU(), conv2=nn.Linear(6, 2))
    plan = fxenorm.analyze(model, torch.randn(3, 4))
    with pytest.raises(OptionError, match=r"no layer, parameter or module 'conv3'; the nearest are: .*conv2, conv1|conv1, conv2"):
        plan.why("conv3")
    with pytest.raises(OptionError, match="'zzzz'; the layers begin with: conv1, conv2"):
        plan.why("zzzz")
    with pytest.raises(OptionError, match="act has no parameters"):
        plan.why("act")


def test_what_is_held_now_is_told_of_the_layers_that_it_moves() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[2].weight[:, :2] = 0.0
    plan = fxenorm.analyze(model)
    assert [len(plan.why(name).layers[0].held) for name in ("0", "2", "4")] == [1, 1, 0]
    assert "held now: g0: 2 scales held, dead: " in str(plan.why("0"))
    nn.init.ones_(model[2].weight)
    assert plan.why("0").layers[0].held == ()
    model[0].weight.requires_grad_(False)
    assert "6 scales held, requires_grad=False" in str(plan.why("2"))


def test_a_model_on_the_meta_device_has_an_answer_too() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    meta = fxenorm.analyze(copy.deepcopy(model).to("meta"), torch.randn(2, 4, device="meta"))
    assert meta.why().rows == fxenorm.analyze(model, torch.randn(2, 4)).why().rows
    assert "meta device" in str(meta.why("0")) and not meta.why().told


def test_parameters_that_multiply_nothing_say_so() -> None:
    model = Net(lambda m, x: m.b(torch.relu(m.a(x) + m.p)), a=nn.Linear(4, 6), b=nn.Linear(6, 2), p=nn.Parameter(torch.ones(6)),
                idle=nn.Linear(3, 3))  # fmt: skip
    plan = fxenorm.analyze(model, torch.randn(3, 4))
    assert "nothing is multiplied by it" in str(plan.why("p")) and plan.why("p").layers[0].producer_of == ("g0",)
    assert "no output depends on it" in str(plan.why("idle"))


def test_a_model_without_a_line_of_the_users_names_modules_not_our_files() -> None:
    plan = fxenorm.analyze(nn.LSTM(4, 6), torch.randn(5, 2, 4))
    assert plan.account is not None and all("source.py" not in row.source for row in plan.account.rows)
    assert "lstm" in str(plan.why())


def test_it_is_short_in_a_console_and_survives_storage() -> None:
    plan = analysed("residual")[1]
    stored = json.loads(json.dumps(plan.to_dict()))
    assert fxenorm.Plan.from_dict(stored, plan.model).why() == plan.bind(plan.model).why() == plan.why()
    assert len(repr(plan.why())) < 100
    del stored["symmetry"]["account"]["sides"]
    older = fxenorm.Plan.from_dict(stored, plan.model)
    with pytest.raises(BindError, match=r"run fxenorm\.analyze again"):
        older.why()
    del stored["symmetry"]["account"]
    with pytest.raises(BindError, match=r"run fxenorm\.analyze again"):
        fxenorm.Plan.from_dict(stored, plan.model).why()


@pytest.mark.parametrize(
    "damage",
    [
        lambda sides: sides.pop(),
        lambda sides: sides[0].__setitem__(1, "left"),
        lambda sides: sides[0][3][0].__setitem__(0, 99),
        lambda sides: sides[0][3][0].__setitem__(2, 99),
        lambda sides: sides[0][3].__setitem__(0, "x"),
        lambda sides: sides[0].__setitem__(0, 7),
    ],
)
def test_damaged_sides_are_refused(damage: Any) -> None:
    plan = analysed("residual")[1]
    stored = json.loads(json.dumps(plan.to_dict()))
    damage(stored["symmetry"]["account"]["sides"])
    with pytest.raises(BindError, match="damaged"):
        fxenorm.Plan.from_dict(stored, plan.model)


# ---------------------------------------------------------------- printed


class Blocks(nn.Module):
    """Blocks of equal structure, the widths of which may grow."""

    def __init__(self, count: int, grows: int = 0, dead: int = -1) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 6 + grows * k), "down": nn.Linear(6 + grows * k, 4)}) for k in range(count)
        )
        if dead >= 0:
            nn.init.zeros_(self.blocks[dead]["down"].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))
        return x


def test_blocks_of_equal_structure_share_their_sentences() -> None:
    answer = fxenorm.analyze(Blocks(9), torch.randn(3, 4)).why()
    text = answer.describe(width=100)
    assert "\nblocks.{0..8}.up: 6 channels out, 4 in (9 layers)\n  out  6 free\n" in text
    assert "\nblocks.{0..8}.down: 4 channels out, 6 in (9 layers)\n" in text and "6 carry the scales of .up out: linear" in text
    assert "\n(19 layers, one by one: plan.why().describe(expand=True))" in text and "A leading dot" in text
    assert str(answer) == answer.describe() and len(answer.layers) == 19
    whole = answer.describe(expand=True)
    assert all(f"blocks.{k}.down: 4 channels out, 6 in\n" in f"\n{whole}\n" for k in range(9)) and "{" not in whole
    assert "6 carry the scales of blocks.3.up out: linear" in whole and "A leading dot" not in whole
    assert str(fxenorm.analyze(Blocks(2), torch.randn(3, 4)).why()).count(" layers)") == 0


def test_other_widths_and_other_fates_stay_apart_while_there_is_room() -> None:
    few = str(fxenorm.analyze(Blocks(5, grows=1), torch.randn(3, 4)).why())
    assert "blocks.3.up: 9 channels out" in few and "{" not in few
    many = fxenorm.analyze(Blocks(20, grows=1), torch.randn(3, 4)).why().describe(width=100)
    assert "blocks.{0..19}.up: 6..25 channels out, 4 in (20 layers)\n  out  6..25 free\n" in many
    assert len(many.splitlines()) < 20
    dead = str(fxenorm.analyze(Blocks(9, dead=4), torch.randn(3, 4)).why())
    assert "blocks.{0..3,5..8}.up: 6 channels out, 4 in (8 layers)" in dead
    assert "\nblocks.4.up: 6 channels out, 4 in\n" in dead and "6 scales held, dead: " in dead


@pytest.mark.parametrize("name", [*BY_HAND, *ZOO])
def test_each_layer_is_in_one_block_of_which_the_same_is_said(name: str) -> None:
    answer = plan_of(name).why()
    own = {one.layer: layer_sentences(one, [row for row in answer.rows if row.layer == one.layer]) for one in answer.layers}
    for most in (None, 40, 0):
        blocks = blocks_of(list(own.items()), most)
        assert sorted(layer for block in blocks for layer in block.layers) == sorted(own)
        for block in blocks:
            said = {sentence.key(False)[:2] for sentence in block.sentences}
            assert all({sentence.key(False)[:2] for sentence in own[layer]} == said for layer in block.layers)
            assert most is not None or block.sentences == own[block.layers[0]]
    for expand in (False, True):
        words = [answer.describe(width=width, expand=expand).split() for width in (40, 10_000)]
        assert words[0] == words[1]  # no name is broken inside


def test_channels_that_come_from_many_layers_are_told_in_one_sentence() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        return m.head(torch.cat([torch.relu(getattr(m, f"p{k}")(x)) for k in range(4)], 1))

    parts = {f"p{k}": nn.Linear(4, 3) for k in range(4)}
    answer = fxenorm.analyze(Net(forward, **parts, head=nn.Linear(12, 2)), torch.randn(3, 4)).why()
    assert "\n  in   12 carry the scales of p{0..3} out: linear, " in answer.describe()
    assert "\n  in   3 carry the scales of p0 out: linear, " in answer.describe(expand=True)
    assert sum(row.channels for row in answer.rows if row.layer == "head" and row.side == "in") == 12

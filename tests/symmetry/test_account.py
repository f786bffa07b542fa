"""The account of channel ends: what is free, fixed and tied away is everything, each with the node that made it so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import BindError
from fxenorm.field import ChannelEnds
from fxenorm.symmetry import count_ends as counting
from fxenorm.symmetry.account import AccountRow, ChannelAccount
from fxenorm.symmetry.replay import Losses

from ..account_cases import BY_HAND, Experts
from ..account_check import assert_adds_up
from ..zoo import CASES
from ..zoo_base import Net
from .test_structures import analysed


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    build, inputs, options, wanted, free = BY_HAND[name]
    torch.manual_seed(0)
    plan = fxenorm.analyze(build(), inputs, **options)
    assert_adds_up(plan.symmetry)
    assert plan.account is not None and plan.account.free == free
    found: dict[tuple[str, str, str], int] = {}
    for row in plan.account.rows:
        # At another size it does not matter which of the operators that move entries ties them.
        operator = row.operator.split(".")[0] if row.graph != "at another size" else ""
        key = (row.kind, operator, row.graph)
        found[key] = found.get(key, 0) + row.count
    assert found == wanted


@pytest.mark.parametrize("name", CASES)
def test_every_network_of_the_zoo_adds_up(name: str) -> None:
    assert_adds_up(analysed(name)[1].symmetry)


@pytest.mark.parametrize("batchnorm", ["affine", "folded", "frozen", "skip"])
@pytest.mark.parametrize(
    "options", [{}, {"biases": "count"}, {"biases": "skip"}, {"exclude": ("0", "4.weight")}, {"modes": "eval"}]
)
def test_adds_up_under_every_option(batchnorm: str, options: dict[str, Any]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.PReLU(6), nn.Conv2d(6, 4, 1),
        nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip
    assert_adds_up(fxenorm.analyze(model, torch.randn(3, 3, 8, 8), batchnorm=batchnorm, **options).symmetry)


def test_of_two_ends_that_are_one_the_later_is_tied_to_the_earlier() -> None:
    build, inputs, *_ = BY_HAND["chain"]
    account = fxenorm.analyze(build(), inputs).account
    assert account is not None and [row.module for row in account.rows if row.kind == "tied"] == ["2"]


def test_an_end_is_counted_once_over_all_uses_of_a_weight() -> None:
    def shared() -> nn.Module:
        tied = Net(
            lambda m, i: nn.functional.linear(torch.relu(m.b(m.a(i))), m.a.weight), a=nn.Embedding(7, 4), b=nn.Linear(4, 4)
        )
        return tied

    account = fxenorm.analyze(shared(), torch.tensor([[1, 2, 3]])).account
    assert account is not None and account.total == 7 + 4 + 4 + 4
    attention = fxenorm.analyze(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8)).account
    assert attention is not None and attention.total == (8 + 24) + (8 + 8) + 2 * (8 + 16) + 2 * 8


def test_each_part_that_is_cut_out_of_a_weight_has_its_ends() -> None:
    """Each part once, however often it is cut out."""

    def forward(m: Net, x: Tensor) -> Tensor:
        h = nn.functional.linear(x, m.w[:6]).relu() + nn.functional.linear(-x, m.w[:6]).relu()
        return nn.functional.linear(h, m.w[6:].reshape(-1, 6))

    symmetry = fxenorm.analyze(Net(forward, w=nn.Parameter(torch.randn(12, 4))), torch.randn(5, 4)).symmetry
    assert_adds_up(symmetry)
    assert symmetry.account is not None and symmetry.account.total == (4 + 6) + (6 + 4)


def test_a_part_that_another_size_cuts_out_has_no_ends_of_its_own() -> None:
    """Where the second size takes nothing away, the account is that of the first."""
    cut = Net(
        lambda m, x: m.b(torch.einsum("nld,kl->nkd", m.a(x).relu(), m.mix[:, : x.shape[1]])),
        a=nn.Linear(4, 6),
        mix=nn.Parameter(torch.randn(3, 12)),
        b=nn.Linear(6, 2),
    )
    symmetry = fxenorm.analyze(cut, torch.randn(2, 5, 4)).symmetry
    assert_adds_up(symmetry)
    assert symmetry.account is not None and symmetry.account.total == (4 + 6) + (5 + 3) + (6 + 2)


def test_where_most_is_lost_is_printed() -> None:
    """Fused recurrences, graph layers and mixtures of experts hold channels without a barrier that says so."""
    plan = fxenorm.analyze(Experts(), torch.randn(6, 4))
    assert plan.account is not None and plan.account.tied
    assert "tied by linear" in str(plan) and "index_add" in str(plan)
    rows = [row for row in plan.account.rows if "index_add" in row.operator]
    assert [(row.kind, row.count) for row in rows] == [("tied", 5), ("tied", 5)], "three experts write the same five channels"
    assert all("account_cases.py" in row.source for row in rows)
    for name in ("fused LSTM", "graph layer", "size"):
        build, inputs, options, _, _ = BY_HAND[name]
        plan = fxenorm.analyze(build(), inputs, **options)
        assert plan.account is not None and str(plan.account).splitlines()[0] in str(plan)
        held = [row for row in plan.account.rows if row.kind in ("barrier", "tied")]
        assert any(row.operator.split(".")[0] in str(plan) for row in held)


def test_rows_are_told_by_operator_and_graph_the_largest_first() -> None:
    def row(count: int, operator: str, module: str, graph: str = "", kind: Any = "tied") -> AccountRow:
        return AccountRow(kind, count, operator, "node", module, "model.py:3, in forward", graph=graph)

    rows = [row(3, "linear.default", "a"), row(2, "linear.out", "b"), row(4, "linear.default", "a", "in train mode")]
    account = ChannelAccount(40, 8, 1, (*rows, row(9, "mm.default", "c"), row(6, "gelu.default", "d", kind="barrier")))
    assert account.fixed() == 6 and account.fixed("barrier") == 6 and account.tied == 18
    places = tuple(f"{module}, model.py:3" for module in "abc")
    assert account.by_operator("tied") == (
        ("mm", "", 9, places[2:]),
        ("linear", "", 5, places[:2]),
        ("linear", "in train mode", 4, places[:1]),
    )
    first, second, third = account.lines(most=1)
    assert first.startswith("Channel ends 40: 8 free, 0 fixed by inputs") and first.endswith(
        "6 by barriers, 0 by options, 18 tied away"
    )
    assert " ".join(second.split()) == "fixed by gelu 6 (d, model.py:3); tied by mm 9 (c, model.py:3), 2 more"
    assert third.strip() == "1 scales more move only tensors that are not counted"
    assert "linear 5 (2 places), linear 4 (a, model.py:3, in train mode)" in str(account)


def test_scales_of_tensors_that_are_not_counted_are_told() -> None:
    """The lengths of rows that are normalised: five of a tensor that no contraction multiplies as it is."""
    model = Net(lambda m, x: m.b(x) + m.v.norm(dim=1).sign().sum(), b=nn.Linear(4, 2), v=nn.Parameter(torch.ones(5, 4)))
    plan = fxenorm.analyze(model, torch.randn(3, 4))
    assert_adds_up(plan.symmetry)
    assert plan.account is not None and plan.account.uncounted == plan.num_scales > 0
    assert "move only tensors that are not counted" in str(plan)


def test_held_is_a_part_of_what_is_free() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    nn.init.zeros_(model[2].weight)
    plan = fxenorm.analyze(model)
    assert plan.account is not None and sum(entry.count for entry in plan.held) == plan.account.free == 6


def test_it_is_stored_and_follows_copies() -> None:
    plan = analysed("residual")[1]
    stored = json.loads(json.dumps(plan.to_dict()))
    assert fxenorm.Plan.from_dict(stored, plan.model).account == plan.account
    assert copy.deepcopy(plan).account == plan.bind(plan.model).account == plan.account
    older = copy.deepcopy(stored)
    del older["symmetry"]["account"]
    loaded = fxenorm.Plan.from_dict(older, plan.model)
    assert loaded.account is None and "Channel ends" not in str(loaded)


@pytest.mark.parametrize(
    "damage",
    [
        lambda account: account.update(free=account["free"] + 1),
        lambda account: account["rows"].pop(),
        lambda account: account["rows"][0].__setitem__(0, "luck"),
        lambda account: account["rows"][0].__setitem__(1, "4"),
        lambda account: account.update(rows=7),
    ],
)
def test_a_damaged_account_is_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    plan = analysed("residual")[1]
    stored = json.loads(json.dumps(plan.to_dict()))
    damage(stored["symmetry"]["account"])
    with pytest.raises(BindError, match="damaged"):
        fxenorm.Plan.from_dict(stored, plan.model)


@pytest.mark.parametrize("side", ["input", "output"])
def test_control_a_forgotten_end_is_seen(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input's channels are all there on the other side too, an output's are not: the sum or the total shows either."""
    note = ChannelEnds.note
    before = fxenorm.analyze(CASES["residual"].build().double(), CASES["residual"].inputs()).account
    monkeypatch.setattr(ChannelEnds, "note", lambda self, name, where, *rest: where == side and note(self, name, where, *rest))
    symmetry = fxenorm.analyze(CASES["residual"].build().double(), CASES["residual"].inputs()).symmetry
    assert before is not None and symmetry.account is not None and symmetry.account.total < before.total


def test_control_an_equation_that_is_not_counted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    monkeypatch.setattr(counting, "lost", lambda *args: Losses(nothing, nothing, nothing))
    build, inputs, _, _, _ = BY_HAND["sum over channels"]
    symmetry = fxenorm.analyze(build(), inputs).symmetry
    with pytest.raises(AssertionError):
        assert_adds_up(symmetry)

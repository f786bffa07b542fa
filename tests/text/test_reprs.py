"""The names that a console echoes: one short line each, plain numbers, and a failure that does not begin like a success."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxenorm
from fxenorm.rules import register_rule
from fxenorm.rules.laws import passes

from ..symmetry.test_structures import analysed
from ..zoo import CASES

LONGEST = 160


def chain(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)


def parts(plan: fxenorm.Plan) -> Iterator[Any]:
    yield from (plan, plan.symmetry, plan.account, plan.why())
    yield from (*plan.groups, *plan.pairs, *plan.barriers, *plan.held, *(site for group in plan.groups for site in group.sites))


@pytest.mark.parametrize("name", sorted(CASES)[::3])
def test_each_part_of_a_plan_is_one_short_line(name: str) -> None:
    plan = analysed(name)[1]
    for part in parts(plan):
        assert "\n" not in repr(part) and len(repr(part)) <= LONGEST, repr(part)
    for group in plan.groups:
        assert f"{group.name}: {group.kind}, {len(group.variables)} channel" in repr(group)
    for pair in plan.pairs:
        assert f"{pair.producer} -> {pair.consumer}: {pair.group}" in repr(pair)


def test_all_groups_of_a_large_model_fit_a_screen() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    plan = fxenorm.analyze(model, torch.randn(1, 3, 64, 64, device="meta"))
    assert len(repr(plan.groups)) < 100 * len(plan.groups) < 2000
    assert all(len(repr(pair)) < LONGEST for pair in plan.pairs)


def test_a_short_name_leaves_equality_and_pickles_as_they_are() -> None:
    plan = analysed("residual")[1]
    nn.init.zeros_(next(plan.model.parameters()))
    assert plan.held
    for part in (*plan.pairs, *plan.barriers, *plan.held):
        again = pickle.loads(pickle.dumps(part))
        assert again == part and hash(again) == hash(part) and repr(again) == repr(part)


def test_layer_norms_print_as_numbers_and_stay_tensors() -> None:
    norms = fxenorm.analyze(chain()).layer_norms()
    assert "tensor" not in repr(norms) and all(isinstance(norm, torch.Tensor) for norm in norms.values())
    assert eval(repr(norms)) == pytest.approx({name: norm.item() for name, norm in norms.items()}, rel=1e-5)
    assert fxenorm.analyze(nn.Sequential(nn.Linear(3, 2))).layer_norms() == {}


def test_handles_say_what_they_do() -> None:
    model = chain()
    plan, optimizer = fxenorm.analyze(model), torch.optim.SGD(model.parameters(), lr=0.1)
    handle, tracked = plan.attach(optimizer, 3), plan.track(AveragedModel(model))
    assert "SGD" in repr(handle) and "every 3 steps" in repr(handle) and "Sequential" in repr(tracked)
    handle.remove()
    tracked.remove()
    assert "removed" in repr(handle) and "removed" in repr(tracked)
    assert max(len(repr(handle)), len(repr(tracked))) <= LONGEST


def test_a_failed_check_does_not_begin_like_one_that_passed() -> None:
    plan = fxenorm.analyze(chain())
    good = plan.verify()
    assert str(good).startswith("verified: outputs unchanged") and len(repr(good)) <= LONGEST
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 2))
    found = fxenorm.analyze(model, approximate=("relu6",)).verify(30 * torch.randn(64, 4))
    assert not found and str(found).startswith("OUTPUTS CHANGED (the plan itself says that it is not exact)")
    assert "verified" not in repr(found) and len(repr(found)) <= LONGEST


def test_a_plan_that_is_wrong_does_not_begin_like_one_that_is_right() -> None:
    @torch.library.custom_op("reprs::halved_above_one", mutates_args=())
    def halved(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 1, x / 2, x)

    halved.register_fake(torch.empty_like)
    register_rule("reprs::halved_above_one")(lambda call: passes(call, "x"))
    model = nn.Sequential(nn.Linear(4, 6), Calls(halved), nn.Linear(6, 2))
    found = fxenorm.analyze(model, torch.randn(8, 4)).verify(8 * torch.randn(8, 4))
    assert not found and str(found).splitlines()[0] == "OUTPUTS CHANGED" and "verified" not in str(found)


class Calls(nn.Module):
    """A module around a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("dtype", "options", "rounded"),
    [
        (torch.float32, {}, False),
        (torch.float32, {"scales": "pow2"}, True),
        (torch.bfloat16, {}, True),
        (torch.bfloat16, {"scales": "exact"}, False),
    ],
)
def test_converged_says_where_powers_of_two_end_it(dtype: torch.dtype, options: dict[str, Any], rounded: bool) -> None:
    result = fxenorm.analyze(chain(dtype), torch.randn(3, 4, dtype=dtype), **options).balance()
    assert result.converged and result.powers_of_two == rounded
    for text in (str(result), repr(result)):
        assert ("converged within a power of two after" in text) == rounded and ("converged after" in text) != rounded
    assert "\n" not in repr(result) and "tensor(" not in repr(result)


def test_nothing_converges_where_nothing_moves() -> None:
    plan = fxenorm.analyze(chain())
    plan.model[0].requires_grad_(False)
    plan.model[2].requires_grad_(False)
    with pytest.warns(fxenorm.FxenormWarning):
        result = plan.balance()
    assert str(result).startswith("balance: nothing to balance, all 11 scales are held\n") and "nothing to balance" in repr(
        result
    )
    with pytest.warns(fxenorm.FxenormWarning):
        none = fxenorm.analyze(nn.Sequential(nn.Linear(3, 2))).balance()
    assert str(none).startswith("balance: nothing to balance, there are no scales")

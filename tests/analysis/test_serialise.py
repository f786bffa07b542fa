"""Stored plans: exact round trips through JSON, and a clear error for anything else."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import typing

import numpy as np
import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.analysis.analysis import Analysis
from fxenorm.analysis.groups import build_groups
from fxenorm.analysis.options import Options
from fxenorm.analysis.pair_graph import layer_depths, pair_graph
from fxenorm.analysis.pairs import build_pairs
from fxenorm.analysis.serialise import from_dict, to_dict
from fxenorm.errors import BindError
from fxenorm.symmetry.symmetry import Barrier, NormFold, Symmetry

from ..hand_made import attention, chain, residual

SYMMETRIES = {
    "chain": chain([4, 5, 6, 3], bias=True),
    "residual": residual(3, 4, 2),
    "attention": attention(4, packed=True),
    "nothing": chain([4, 3]),
    "offsets": dataclasses.replace(chain([2, 3, 2]), offsets={"fc1.weight": 1.0, "fc2.weight": -0.25}),
    "decorated": dataclasses.replace(
        chain([2, 3, 2]),
        barriers=(Barrier("gelu.default", "gelu", "act", "model.py:3, in forward", 4, "no law", known=False),),
        folds=(
            NormFold("fc1.weight", None, 0, None, None, "bn.running_mean", "bn.running_var", 1e-5, transposed=True, groups=2),
        ),
        aliases={"tied": "fc1.weight"},
        buffers=frozenset({"bn.running_mean"}),
        modes=("eval", "train"),
        inexact_reasons=("because",),
        notes=("note",),
    ),
}
OPTIONS = [
    Options(),
    Options(p=math.inf, batchnorm="folded", biases="count"),
    Options(p=0.5, c={"fc1": 2.0}, exclude=("head*",), modes="eval", balance_last=False, max_log_scale=1.5),
    Options(c="adaptive", approximate=("relu6",)),
]


def parts(symmetry: Symmetry):
    pairs = build_pairs(symmetry)
    return build_groups(symmetry, layer_depths(pair_graph(symmetry, pairs))), pairs


def stored(symmetry: Symmetry, options: Options | None = None):
    return to_dict(symmetry, options or Options(), *parts(symmetry))


def assert_same(left, right, where="plan"):
    """Equal in type and value, arrays entry by entry."""
    assert type(left) is type(right), where
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype and left.shape == right.shape and np.array_equal(left, right), where
    elif dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name), f"{where}.{field.name}")
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}[{key!r}]")
    elif isinstance(left, (tuple, list)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert left == right, where


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", SYMMETRIES)
def test_round_trip_through_strict_json(name, options):
    symmetry = SYMMETRIES[name]
    groups, pairs = parts(symmetry)
    text = json.dumps(to_dict(symmetry, options, groups, pairs), allow_nan=False)
    assert_same((symmetry, options, groups, pairs), from_dict(json.loads(text)))


def test_restored_arrays_can_be_written():
    symmetry, _, _, _ = from_dict(stored(SYMMETRIES["chain"]))
    for terms in symmetry.exponents.values():
        for _, ids in terms:
            ids += 0


def test_a_checkpoint_of_an_older_version_is_known_by_its_fingerprint():
    """Attached plans resume by it: a new option at its default, or another order of the work, must not change it."""
    written = "1e4527863df5894e9118756d645c773714ae04db039daf879ad831f86faea397"
    symmetry = chain([5, 7, 8, 6, 4], bias=True)
    assert Analysis(symmetry, Options()).fingerprint == written
    others = [Options(p=1.0), Options(c=2.0), Options(c={"fc1": 2.0}), Options(outputs=("fc1",)), Options(balance_last=False)]
    moved = dataclasses.replace(symmetry, offsets={"fc1.weight": 1.0})
    found = {Analysis(symmetry, options).fingerprint for options in others} | {Analysis(moved, Options()).fingerprint}
    assert len(found) == len(others) + 1 and written not in found


def test_storing_changes_nothing_and_repeats_itself():
    symmetry = SYMMETRIES["residual"]
    before = copy.deepcopy(symmetry)
    assert stored(symmetry) == stored(symmetry)
    assert_same(symmetry, before)


@pytest.mark.parametrize("bad", [None, 3, [], "plan", {}, {"state_dict": 1}])
def test_what_is_no_stored_plan_says_what_was_given(bad):
    with pytest.raises(BindError, match=r"not a stored plan.*Plan\.to_dict"):
        from_dict(bad)


def test_another_format_names_both_versions():
    old = {**stored(SYMMETRIES["chain"]), "format": 0, "fxenorm": "0.0.1"}
    with pytest.raises(BindError, match=r"format 0 by fxenorm 0\.0\.1.*reads format 1"):
        from_dict(old)


def damage(path, value):
    def change(plan):
        *parents, last = path
        for key in parents:
            plan = plan[key]
        if value is KeyError:
            del plan[last]
        else:
            plan[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        damage(["symmetry"], KeyError),
        damage(["symmetry", "roles"], KeyError),
        damage(["symmetry", "roles", "fc1.weight"], "wheel"),
        damage(["symmetry", "num_scales"], 3),
        damage(["symmetry", "shapes", "fc1.weight"], [7, 7]),
        damage(["symmetry", "exponents", "fc1.weight"], [[1, [10**6, [5, 1]]]]),
        damage(["symmetry", "exponents", "fc1.weight"], [[0, [0, [7, 1]]]]),
        damage(["symmetry", "exponents", "fc1.weight"], [[1.5, [0, [7, 1]]]]),
        damage(["symmetry", "exponents", "fc1.weight"], [[2**40, [0, [7, 1]]]]),
        damage(["symmetry", "exponents", "fc1.weight"], [[1, [0, [3]]]]),
        damage(["symmetry", "exponents", "fc1.weight"], [[1, [0, [1, 7, 1]]]]),
        damage(["symmetry", "group_starts"], [0, [2]]),
        damage(["symmetry", "barriers"], [{"what": 1}]),
        damage(["symmetry", "sites"], [["fc1"]]),
        damage(["symmetry", "flows"], None),
        damage(["arrays", "deltas"], "!!"),
        damage(["arrays", "deltas"], "AAAA"),
        damage(["arrays", "length"], 1),
        damage(["arrays", "length"], -1),
        damage(["arrays", "length"], "many"),
        damage(["options", "p"], -1.0),
        damage(["options", "colour"], "red"),
        damage(["groups"], []),
        damage(["pairs"], [["a"]]),
    ],
)
def test_damage_is_one_clear_error(change: typing.Callable):
    plan = stored(SYMMETRIES["chain"])
    change(plan)
    with pytest.raises(BindError, match="damaged"):
        from_dict(plan)


@pytest.mark.parametrize("number", [-2, 11])
@pytest.mark.parametrize("where", ["exponents", "sites", "channels"])
def test_an_id_that_is_no_variable_is_damage(where, number):
    """Variables are 0 to 10, -1 stands for none."""
    right = dataclasses.replace(SYMMETRIES["chain"], channels=(((1, np.arange(11)),),))
    assert right.num_scales == 11
    from_dict(to_dict(right, Options(), *parts(right)))
    wrong = copy.deepcopy(right)
    ids = {
        "exponents": wrong.exponents["fc2.weight"][1][1],
        "sites": wrong.sites[0].variables,
        "channels": wrong.channels[0][0][1],
    }
    ids[where].flat[-1] = number
    with pytest.raises(BindError, match=r"damaged.*11 variables"):
        from_dict(to_dict(wrong, Options(), *parts(right)))


@pytest.mark.parametrize("options", [{}, {"p": math.inf, "batchnorm": "folded"}, {"batchnorm": "frozen", "modes": "eval"}])
def test_a_plan_of_a_real_model_comes_back_whole(options):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.GELU(), nn.Flatten())
    plan = fxenorm.analyze(model, torch.rand(2, 3, 7, 7), **options)
    again = fxenorm.Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)), model)
    assert_same(
        (plan.symmetry, plan.options, plan.groups, plan.pairs), (again.symmetry, again.options, again.groups, again.pairs)
    )
    assert again.fingerprint == plan.fingerprint
    assert str(again) == str(plan)


def test_what_is_stored_is_in_an_order_of_the_model() -> None:
    """Sets of names have another order in each process: twelve of them do not come in the model's by chance."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Buffer(torch.rand(1, 4, dtype=torch.float32))
            self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
            self.bias = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(4, 4), nn.Tanh())))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) + self.bias(self.table))

    model = Biased()
    flows = fxenorm.analyze(model, torch.randn(2, 4, dtype=torch.float32)).to_dict()["symmetry"]["flows"]
    flow = next(iter(flows.values()))
    (read,) = [[name for name, _ in event[6]] for event in flow if event[1].startswith("add")]
    assert read == [f"bias.{name}" for name, _ in model.bias.named_parameters()]

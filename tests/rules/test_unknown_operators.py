"""An operator without a rule never passes a scale: it is a barrier with its name, its source line and what it stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import FxenormWarning, UnsupportedOperatorError
from fxenorm.rules import NO_RULE, Call, registry

from ..completeness_harness import analysed, soundness
from ..zoo_base import Net


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    """Two made-up operators: one that happens to be homogeneous, one that is not."""
    with torch.library._scoped_library("fxenorm_tests", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.define("plus_one(Tensor x) -> Tensor")
        library.define("grow_(Tensor(a!) x) -> Tensor(a!)")
        for key in ("CPU", "Meta"):
            library.impl("twice", lambda x: 2 * x, key)
            library.impl("plus_one", lambda x: x + 1, key)
            library.impl("grow_", lambda x: x.add_(1), key)
        yield


INPUT = (torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


def _two_unknown() -> nn.Module:
    def forward(m: Net, x: Tensor) -> Tensor:
        h = torch.ops.fxenorm_tests.twice(m.a(x))
        return m.c(torch.relu(m.b(torch.ops.fxenorm_tests.plus_one(h))))

    return Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 3))


def test_an_unknown_operator_is_a_barrier() -> None:
    found = analysed(_two_unknown, INPUT)
    assert found.symmetry.num_scales == 5, "what lies behind is free"
    unknown = [barrier for barrier in found.symmetry.barriers if not barrier.known]
    assert {barrier.operator for barrier in unknown} == {"twice.default", "plus_one.default"}
    first = next(barrier for barrier in unknown if barrier.operator == "twice.default")
    assert first.variables == 6 and first.reason == NO_RULE
    assert "test_unknown_operators.py:" in first.source and "in forward" in first.source
    assert soundness(found, INPUT, "eval") <= 1e-10


def test_all_unknown_operators_are_listed_at_once() -> None:
    model = _two_unknown().double()
    with pytest.raises(UnsupportedOperatorError, match=r"(?s)twice\.default.*plus_one\.default"):
        fxenorm.analyze(model, INPUT, on_unknown="error")


def test_an_unknown_operator_that_writes_in_place() -> None:
    def build() -> nn.Module:
        def forward(m: Net, x: Tensor) -> Tensor:
            h = m.a(x) * 1
            torch.ops.fxenorm_tests.grow_(h)
            return m.b(h)

        return Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3))

    found = analysed(build, INPUT)
    assert found.symmetry.num_scales == 0
    assert any(barrier.operator == "grow_.default" and barrier.variables == 6 for barrier in found.symmetry.barriers)


def test_known_models_hold_no_unknown_operator() -> None:
    found = analysed(lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)), INPUT)
    assert all(barrier.known for barrier in found.symmetry.barriers)
    fxenorm.analyze(found.model, INPUT, on_unknown="error")


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_what_a_saturating_recurrence_holds_is_named(kind: str) -> None:
    inputs = (torch.randn(2, 5, 4, dtype=torch.float64),)

    def build() -> nn.Module:
        layer = getattr(nn, kind)(6, 5, batch_first=True)
        return Net(lambda m, x: m.b(m.r(m.a(x))[0]), a=nn.Linear(4, 6), r=layer, b=nn.Linear(5, 3))

    found = analysed(build, inputs)
    assert found.symmetry.num_scales == 6, "the weights that read the input undo what it carries"
    assert any("gates" in barrier.reason for barrier in found.symmetry.barriers if barrier.known)
    assert soundness(found, inputs, "eval") <= 1e-10


def test_a_rule_that_fails_becomes_a_barrier_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: Call) -> None:
        raise KeyError("an argument that the rule did not foresee")

    monkeypatch.setitem(registry._RULES, "aten::relu", registry.Rule("aten::relu", "homogeneous", broken))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 2))
    with pytest.warns(FxenormWarning, match=r"relu\.default failed at relu .*KeyError"):
        plan = fxenorm.analyze(model)
    assert plan.num_scales == 5 and plan.verify()
    assert [(b.operator, b.variables) for b in plan.barriers] == [("relu.default", 4)]


def test_an_unknown_operator_of_torch_whose_result_nobody_reads_stops_nothing() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        h = m.a(x)
        torch.ops.prims.add.default(h, h)
        return m.b(torch.relu(h))

    found = analysed(lambda: Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3)), INPUT)
    assert found.symmetry.num_scales == 6 and not found.symmetry.barriers


def test_an_unknown_operator_of_another_library_may_do_more_than_compute() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        h = m.a(x)
        torch.ops.fxenorm_tests.twice(h)
        return m.b(torch.relu(h))

    found = analysed(lambda: Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3)), INPUT)
    assert found.symmetry.num_scales == 0 and not found.symmetry.barriers[0].known

"""A plan holds at the sizes that were seen: the example's, and a second one wherever the model runs at one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.trace import trace_model
from fxenorm.trace.free_axes import AxisFacts, axis_facts, free_classes

from ..helpers import draw_log_scales


class Transposed(nn.Module):
    """The identity at one position between two layers, a shuffle at several."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        return self.o(h.flatten(2).mT.reshape(h.shape))


class Sequence(nn.Module):
    """Mixes places and channels unless there is one place."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.a = nn.Embedding(11, 8) if tokens else nn.Linear(5, 8)
        self.o = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        h = scale * self.a(x).relu()
        return self.o(h.mT.reshape(h.shape))


class Square(nn.Module):
    """A fixed image size, as a vision transformer's; its batch is mixed with its channels unless it is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (8, 8), "wrong image size"
        h = self.a(x).flatten(2).mT.relu()
        return self.o(h.permute(2, 1, 0).reshape(h.shape))


class Masked(nn.Module):
    """Several inputs that share axes: features (batch, n, 5), a mask (n, n) and one weight a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, inputs: dict[str, torch.Tensor], *, weight: torch.Tensor) -> torch.Tensor:
        h = self.a(inputs["x"]).relu()
        h = (inputs["mask"] @ h) * weight[:, None, None]
        return self.o(h.mT.reshape(h.shape))


class Graph(nn.Module):
    """Message passing: the values of the edges are numbers of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        h = self.a(x).relu()
        return self.o(h + torch.zeros_like(h).index_add(0, target, h[source]))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, int]] = {
    "image": (Transposed, torch.randn(2, 3, 1, 1), {}, 1),
    "image of several places": (Transposed, torch.randn(2, 3, 4, 4), {}, 1),
    "vectors": (lambda: Sequence(False), torch.randn(2, 1, 5), {}, 1),
    "tokens": (lambda: Sequence(True), torch.zeros(2, 1, dtype=torch.int64), {}, 1),
    "keyword": (lambda: Sequence(True), {"x": torch.zeros(2, 1, dtype=torch.int64)}, {"scale": 2.0}, 1),
    "only the batch": (Square, torch.randn(1, 3, 8, 8), {}, 1),
    "mask": (Masked, ({"x": torch.randn(2, 1, 5), "mask": torch.ones(1, 1)},), {"weight": torch.ones(2)}, 1),
    "longer mask": (Masked, ({"x": torch.randn(2, 6, 5), "mask": torch.ones(6, 6)},), {"weight": torch.ones(2)}, 1),
    "nodes and edges": (Graph, (torch.randn(4, 5), torch.tensor([[0, 1, 3], [1, 2, 0]])), {}, 8),
    "ordinary": (small, torch.randn(2, 3, 8, 8), {}, 8),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", CASES)
def test_what_holds_at_one_size_only_is_no_scale(name: str, device: str) -> None:
    build, example, keywords, expected = CASES[name]
    torch.manual_seed(0)
    model = build().to(device)
    plan = fxenorm.analyze(model, example, example_kwargs=keywords)
    assert plan.num_scales == expected and plan.exact
    assert any(note.startswith("seen at two sizes: ") for note in plan.symmetry.notes)
    assert str(plan).count("seen at") == 1


@pytest.mark.parametrize("name", CASES)
def test_the_second_size_changes_all_free_axes_each_by_another_factor(name: str) -> None:
    build, example, keywords, _ = CASES[name]
    traced = trace_model(build(), example, example_kwargs=keywords, modes="eval")[0]
    assert traced.second is not None and traced.second.inputs is not None and traced.inputs is not None
    changed = {
        (before, after)
        for a, b in zip(traced.inputs.tensors(), traced.second.inputs.tensors(), strict=True)
        for before, after in zip(a.shape, b.shape, strict=True)
        if before != after
    }
    free = {"only the batch": 1, "image": 3, "image of several places": 3, "ordinary": 3, "nodes and edges": 2, "mask": 3}.get(
        name, 2
    )
    assert len(changed) == len({after / before for before, after in changed}) == free


def test_outputs_stay_at_sizes_that_were_not_the_example() -> None:
    torch.manual_seed(0)
    model, x = Transposed().double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    before = model(x)
    plan = fxenorm.analyze(model, torch.randn(2, 3, 1, 1, dtype=torch.float64))
    plan.rescale(draw_log_scales(plan))
    assert torch.allclose(model(x), before, rtol=1e-10, atol=1e-12)


class More(nn.Module):
    """A layer more, and an operator without a rule, where there are several places."""

    def __init__(self, rule: bool) -> None:
        super().__init__()
        self.a, self.o, self.more, self.rule = nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(8, 2), rule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        if x.shape[1] == 1:
            return self.o(h)
        return self.o(h) + self.more(h) if self.rule else self.o(torch.special.bessel_j0(h))


def test_a_layer_that_only_the_second_size_reads_follows() -> None:
    torch.manual_seed(0)
    model, x = More(True).double(), torch.randn(2, 4, 5, dtype=torch.float64)
    plan = fxenorm.analyze(model, x[:, :1])
    assert plan.num_scales == 8 and "more.weight" in plan.exponents
    with torch.no_grad():
        before = model(x)
        plan.rescale(draw_log_scales(plan))
        torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)


def test_an_operator_without_a_rule_is_listed_once_over_both_sizes() -> None:
    plan = fxenorm.analyze(More(False), torch.randn(2, 1, 5))
    assert [(barrier.known, barrier.variables) for barrier in plan.barriers] == [(False, 8)]
    plan = fxenorm.analyze(nn.Sequential(Transposed(), Odd()), torch.randn(2, 3, 1, 1))
    assert [barrier.known for barrier in plan.barriers if "bessel" in barrier.operator] == [False]


class Odd(nn.Module):
    """An operator without a rule."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_a_second_size_that_takes_nothing_away_leaves_the_plan_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    plan = fxenorm.analyze(model, x)
    monkeypatch.setattr("fxenorm.trace.tracer.with_second_size", lambda traced, trace: traced)
    alone = fxenorm.analyze(model, x)
    assert plan.fingerprint == alone.fingerprint and plan.pairs == alone.pairs and plan.barriers == alone.barriers
    assert plan.symmetry.flows == alone.symmetry.flows and plan.symmetry.fixed_by_output == alone.symmetry.fixed_by_output
    assert [site.module for site in plan.symmetry.sites] == [site.module for site in alone.symmetry.sites]


def test_a_model_of_one_size_says_so_and_nothing_else_happens() -> None:
    class OneSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o, self.calls = nn.Linear(4, 8), nn.Linear(8, 2), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if x.shape != (3, 4):
                raise KeyError("strange")
            return self.o(self.a(x).relu())

    model = OneSize()
    plan = fxenorm.analyze(model, torch.randn(3, 4))
    assert plan.num_scales == 8 and plan.exact and model.calls == 0 and plan.symmetry.second_sizes == ()
    assert "seen at one size only" in str(plan)


def test_a_stored_plan_keeps_the_sizes() -> None:
    model = Transposed()
    plan = fxenorm.analyze(model, torch.randn(2, 3, 1, 1))
    stored = fxenorm.Plan.from_dict(json.loads(json.dumps(plan.to_dict())), model)
    assert stored.symmetry.second_sizes == plan.symmetry.second_sizes != ()
    assert [line for line in str(stored).splitlines() if "seen at two sizes" in line]


def test_frozen_norms_hold_at_two_sizes() -> None:
    class Normed(Transposed):
        def __init__(self) -> None:
            super().__init__()
            self.n = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.n(x))

    model = Normed().eval()
    small, large = (fxenorm.analyze(model, torch.randn(2, 3, n, n), batchnorm="frozen", modes="eval") for n in (1, 4))
    assert small.num_scales == large.num_scales and small.exponents.keys() == large.exponents.keys()


@pytest.mark.parametrize(
    ("shapes", "facts", "classes"),
    [
        pytest.param([(2, 4), (2, 3)], AxisFacts(), [[(0, 0), (1, 0)], [(0, 1)], [(1, 1)]], id="one batch"),
        pytest.param([(2, 4), (5, 3)], AxisFacts(), [[(0, 0)], [(0, 1)], [(1, 0)], [(1, 1)]], id="first axes of other sizes"),
        pytest.param([(4, 4)], AxisFacts(), [[(0, 0)], [(0, 1)]], id="as many as wide"),
        pytest.param([(4,), (4, 3)], AxisFacts(), [[(0, 0), (1, 0)], [(1, 1)]], id="a number for each of the batch"),
        pytest.param([(2, 4), (2, 3)], AxisFacts(fixed={(0, 1)}), [[(0, 0), (1, 0)], [(1, 1)]], id="a layer's width"),
        pytest.param(
            [(2, 4), (3, 5)], AxisFacts(fixed={(1, 1)}, same=[((0, 0), (1, 1))]), [[(0, 0)], [(0, 1)], [(1, 0)]], id="other sizes"
        ),
        pytest.param(
            [(2, 4), (4, 3)], AxisFacts(fixed={(1, 0)}, same=[((0, 1), (1, 0))]), [[(0, 0)], [(1, 1)]], id="joined to it"
        ),
        pytest.param([(2, 6), (3, 6, 5)], AxisFacts(), [[(0, 0)], [(0, 1), (1, 1)], [(1, 0)], [(1, 2)]], id="one length"),
        pytest.param(
            [(2, 8, 8), (2, 8, 8)], AxisFacts(), [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 2), (1, 2)]], id="height and width"
        ),
        pytest.param([(2, 1), (2, 3)], AxisFacts(), [[(0, 0), (1, 0)], [(1, 1)]], id="a place to broadcast along"),
        pytest.param([(2, 1), (2, 3)], AxisFacts(moved={(0, 1)}), [[(0, 0), (1, 0)], [(0, 1)], [(1, 1)]], id="a length of one"),
        pytest.param([(1, 1)], AxisFacts(), [[(0, 0)], [(0, 1)]], id="ones alone"),
    ],
)
def test_axes_that_change_together(shapes: list[tuple[int, ...]], facts: AxisFacts, classes: list[list[tuple[int, int]]]) -> None:
    """The batch first; an axis that a layer fixes never, nor one that is joined to it."""
    assert free_classes(facts, [torch.zeros(shape) for shape in shapes]) == classes


class _Of(nn.Module):
    """A function of its inputs."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


@pytest.mark.parametrize(
    ("function", "shapes", "same"),
    [
        (lambda x, y: torch.cat([x, y], 1), [(2, 3, 4), (2, 5, 4)], {((0, 0), (1, 0)), ((0, 2), (1, 2))}),
        (lambda x, y: torch.cat([x, y], -1), [(2, 3, 4), (2, 3, 5)], {((0, 0), (1, 0)), ((0, 1), (1, 1))}),
        (lambda x, y: x + y, [(2, 3, 4), (3, 1)], {((0, 1), (1, 0))}),
        (lambda x, y: x.mT * y, [(2, 3, 4), (2, 4, 3)], {((0, 0), (1, 0)), ((0, 2), (1, 1)), ((0, 1), (1, 2))}),
    ],
    ids=["side by side", "in the last axis", "broadcast", "transposed"],
)
def test_operators_join_the_axes_that_they_need_alike(
    function: Callable[..., torch.Tensor], shapes: list[tuple[int, ...]], same: set[Any]
) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    traced = trace_model(_Of(function), tuple(tensors), modes="eval")[0]
    assert {tuple(sorted(pair)) for pair in axis_facts(traced, tensors).same} == same

"""Experts behind a router: scales of their own where one index picks all their weights, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import fxenorm
from fxenorm.field import ScaleField
from fxenorm.rules import position_axes
from fxenorm.symmetry.walk import index_names, picks

from ..account_check import assert_adds_up
from ..completeness_experts import EXPERTS, HELD_BACK
from ..completeness_harness import analysed, soundness
from ..helpers import TOLERANCE, draw_log_scales, relative_difference
from ..zoo_base import Net


def _inputs(shapes: tuple[tuple[int, ...], ...], seed: int = 5) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("name", HELD_BACK)
def test_what_is_found_of_networks_that_are_not_measured(name: str) -> None:
    build, shapes, number = HELD_BACK[name]
    found = analysed(build, _inputs(shapes))
    assert found.symmetry.num_scales == number
    assert_adds_up(found.symmetry)
    for mode in ("eval", "train"):
        assert soundness(found, _inputs(((60, 4),)), mode) <= TOLERANCE


@pytest.mark.parametrize("name", EXPERTS)
def test_plans_hold_for_other_tokens(name: str) -> None:
    """What is found at the tokens of the example holds for many others, in both modes."""
    build, shapes = EXPERTS[name]
    model, inputs = build().double(), _inputs(shapes)
    plan = fxenorm.analyze(model, inputs)
    others = _inputs(shapes if len(shapes[0]) == 3 else ((200, 4),), seed=6)
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            before = model(*others)
            plan.rescale(0.3 * draw_log_scales(plan))
            after = model(*others)
        assert relative_difference(tree_leaves(before), tree_leaves(after)) <= TOLERANCE


def test_each_expert_has_its_own_group_of_rows() -> None:
    """The rows of one expert's first weight carry variables of no other expert, and its second weight carries the same."""
    build, shapes = EXPERTS["experts_picked"]
    plan = fxenorm.analyze(build(), tuple(x.float() for x in _inputs(shapes)))
    up = {int(k) for _, ids in plan.exponents["up"] for k in ids.ravel() if k >= 0}
    down = {int(k) for _, ids in plan.exponents["down"] for k in ids.ravel() if k >= 0}
    assert len(up) == 9 and up == down
    assert len(plan.pairs) == 1 and (plan.pairs[0].producer, plan.pairs[0].consumer) == ("up", "down")


def test_control_two_indices_taken_for_one_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_names.IndexNames, "name", lambda self, kind, node: (kind, 0))
    _assert_wrong("two_indices")


def test_control_positions_taken_for_others_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_any_order(value: ScaleField, positions: int) -> tuple[int, ...]:
        return tuple(axis for axis, size in enumerate(value.terms[0][1].shape) if size > 1)

    monkeypatch.setattr(picks, "axes_numbered", in_any_order)
    monkeypatch.setattr(picks, "MOVING", position_axes.MOVING | {"aten::flip"})
    _assert_wrong("positions_of_experts_turned")


@pytest.mark.parametrize(
    ("operator", "function", "shapes", "axes", "follow"),
    [
        ("aten::add", torch.add, ((3, 4), (4,)), ((1,), None), True),
        ("aten::add", torch.add, ((3, 4), (4,)), ((0,), None), True),
        ("aten::mul", torch.mul, ((4,), (2, 3, 4)), ((0,), None), True),
        ("aten::mul", torch.mul, ((3, 4), (2, 3, 4)), (None, (1, 2)), True),
        ("aten::div", torch.div, ((3, 3), (3, 3)), ((0,), (0,)), True),
        ("aten::div", torch.div, ((3, 3), (3, 3)), ((0,), (1,)), False),
        ("aten::bmm", torch.bmm, ((5, 3, 4), (5, 4, 2)), ((0,), None), True),
        ("aten::bmm", torch.bmm, ((5, 3, 4), (5, 4, 2)), ((2,), None), False),
        ("aten::matmul", torch.matmul, ((5, 3, 4), (4, 2)), ((0,), None), True),
        ("aten::matmul", torch.matmul, ((5, 3, 4), (4, 2)), ((1,), None), True),
        ("aten::matmul", torch.matmul, ((5, 3, 4), (4, 2)), ((0, 1), None), True),
        ("aten::matmul", torch.matmul, ((5, 3, 4), (4, 2)), ((2,), None), False),
        ("aten::matmul", torch.matmul, ((5, 3, 4), (4, 2)), (None, (1,)), False),
        ("aten::mm", torch.mm, ((3, 4), (4, 2)), ((0,), None), True),
        ("aten::linear", torch.nn.functional.linear, ((5, 3, 4), (2, 4)), ((0, 1), None), True),
        ("aten::linear", torch.nn.functional.linear, ((5, 3, 4), (2, 4)), ((2,), None), False),
        ("aten::linear", torch.nn.functional.linear, ((3, 4), (2, 4)), (None, (0,)), False),
    ],
)
def test_positions_are_followed_where_a_call_treats_each_of_them_alike(operator, function, shapes, axes, follow) -> None:
    """By definition: the arguments with their positions in another order give the result with its own in that order."""
    names = {"linear": ("input", "weight"), "bmm": ("self", "mat2"), "mm": ("self", "mat2")}.get(operator[6:], ("self", "other"))
    values = _inputs(shapes)
    output = function(*values)
    found = position_axes.axes_of_call(
        operator, dict(zip(names, shapes, strict=True)), dict(zip(names, axes, strict=True)), tuple(output.shape)
    )
    assert (found is not None) is follow
    if found is not None:
        turned = [_turned(value, found[0][name]) for name, value in zip(names, values, strict=True)]
        torch.testing.assert_close(function(*turned), _turned(output, found[1]))


def _turned(value: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """The positions along some axes in another order."""
    return torch.roll(value, (1,) * len(axes), axes) if axes else value


def _assert_wrong(name: str) -> None:
    """More is claimed than holds, and the outputs tell."""
    build, shapes = EXPERTS[name]
    assert soundness(analysed(build, _inputs(shapes)), _inputs(shapes), "eval") > 1e-3


def test_control_writes_that_a_view_sees_are_not_calls_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks, "is_in_turn", lambda members, storage: True)
    build, shapes, _ = HELD_BACK["seen_through_a_view"]
    assert soundness(analysed(build, _inputs(shapes)), _inputs(shapes), "eval") > 1e-3


def _two_indices(m: Net, x: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of expert numbers, which are one or only look alike."""
    scores = m.router(x)
    if how == "computed twice":
        return scores.argmax(-1), scores.argmax(-1)
    if how == "largest and least":
        return scores.argmax(-1), scores.argmin(-1)
    if how == "drawn once":
        drawn = torch.randint(0, 3, (9,), device=x.device)
        return drawn, drawn
    return torch.randint(0, 3, (9,), device=x.device), torch.randint(0, 3, (9,), device=x.device)


# The router's scores may be scaled together, where something reads them.
ONE_INDEX = {"computed twice": 3 * 5 + 1, "largest and least": 5 + 1, "drawn once": 3 * 5, "drawn twice": 5}


@pytest.mark.parametrize("how", ONE_INDEX)
def test_two_indices_are_one_only_if_they_are_sure_to_be_equal(how: str) -> None:
    """Each expert has five channels of its own where both of its matrices are picked by one index."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        first, second = _two_indices(m, x, how)
        h = torch.einsum("bi,bhi->bh", x, m.up[first]).relu()
        return torch.einsum("bh,boh->bo", h, m.down[second])

    layers = {"up": torch.randn(3, 5, 4), "down": torch.randn(3, 2, 5)}
    model = Net(forward, router=nn.Linear(4, 3), **{name: nn.Parameter(value) for name, value in layers.items()})
    assert fxenorm.analyze(model, torch.randn(9, 4), modes="eval").num_scales == ONE_INDEX[how]

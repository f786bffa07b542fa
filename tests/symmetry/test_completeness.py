"""Completeness: on small networks of every kind the analysis finds the whole group, as measured from the outputs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxenorm.rules import Rule, registry

from .. import zoo
from ..account_check import assert_adds_up
from ..completeness_cases import NETWORKS
from ..completeness_harness import Found, analysed, claimed_dimension, measure, soundness
from ..completeness_operators import in_plain_python
from ..helpers import TOLERANCE
from ..releases import need

# Jumps, which a derivative does not see: (why, the true dimension).
JUMPS = {
    "compared_with_one": ("the place of the jump is not seen by a derivative", 0),
    "positions_by_norm": ("the order of norms over channels is not seen by a derivative", 1),
}

MISSED: dict[str, str] = {}
"""Networks in which less is found than holds, and why."""

# Written in place over what the derivative of relu needs; `added_in_place` is the same with a product in front.
NOT_MEASURED = {"constant_added_in_place"}


def _case(name: str) -> tuple[Callable[[], nn.Module], Callable[[int], tuple[Any, ...]]]:
    """The network and its inputs from a seed; integer inputs stay."""
    need(name)
    if name in NETWORKS:
        build, shapes = NETWORKS[name]
        return build, lambda seed: tuple(_random(shape, seed + k) for k, shape in enumerate(shapes))
    case = zoo.CASES[name]
    return case.build, lambda seed: tuple(
        _random(x.shape, seed + k) if x.is_floating_point() else x for k, x in enumerate(case.inputs())
    )


def _random(shape: Any, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _found(name: str) -> tuple[Found, tuple[Any, ...]]:
    build, inputs = _case(name)
    return analysed(build, inputs(5)), inputs(5)


@pytest.mark.parametrize("name", [name for name in {**NETWORKS, **zoo.CASES} if name not in NOT_MEASURED])
def test_the_whole_group_is_found(name: str) -> None:
    build, inputs = _case(name)
    with in_plain_python():
        measurement = measure(build, inputs, offsets=zoo.CASES[name].offsets if name in zoo.CASES else None)
    found, _ = _found(name)
    claimed = claimed_dimension(found, measurement.live)
    if name in JUMPS:
        assert claimed == JUMPS[name][1]
    elif name in MISSED:
        assert claimed < measurement.dimension
    else:
        assert claimed == measurement.dimension
    assert_adds_up(found.symmetry)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_found_keeps_the_function(name: str) -> None:
    """In both modes, in one test: the analysis takes most of the time."""
    found, inputs = _found(name)
    with in_plain_python():
        assert {mode for mode in ("eval", "train") if soundness(found, inputs, mode) > TOLERANCE} == set()


def test_at_most_two_networks_miss_anything() -> None:
    assert len(MISSED) <= 2 and len({**NETWORKS, **zoo.CASES}) >= 40


def test_control_a_lost_law_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timid rule for relu the measured dimension is no longer reached."""
    build, inputs = _case("reglu")
    measurement = measure(build, inputs)
    assert claimed_dimension(analysed(build, inputs(5)), measurement.live) == measurement.dimension == 12
    timid = registry._RULES["aten::tanh"].function
    monkeypatch.setitem(registry._RULES, "aten::relu", Rule("aten::relu", "timid", timid))
    assert claimed_dimension(analysed(build, inputs(5)), measurement.live) < 12


def test_control_a_wrong_law_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With relu's law for silu more is claimed than there is, and the function changes."""
    build, inputs = _case("swiglu")
    measurement = measure(build, inputs)
    relu = registry._RULES["aten::relu"].function
    monkeypatch.setitem(registry._RULES, "aten::silu", Rule("aten::silu", "wrong", relu))
    found = analysed(build, inputs(5))
    assert claimed_dimension(found, measurement.live) > measurement.dimension
    assert soundness(found, inputs(5), "eval") > 1e-3

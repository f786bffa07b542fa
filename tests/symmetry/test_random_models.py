"""Small random models of the operators with rules, with sizes that coincide: nothing false is claimed of any of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import fxenorm
from fxenorm.rules import registry
from fxenorm.rules.registry import Rule

from ..random_models import EXPECTED_FAILURES, Report, check, default_dtype, main, sketch
from ..random_operators import DRAWS

SEEDS = range(60)
"""`python -m tests.random_models --count 500 --seed 60` goes on from here."""


@pytest.fixture(scope="module")
def reports() -> dict[int, Report]:
    """What was seen of the seeds that were checked."""
    return {}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model(seed: int, reports: dict[int, Report]) -> None:
    """Sound in both modes, no dimension beyond the true one, no cycle that raises the norm, both executors and default dtypes."""
    sketched = sketch(seed)
    print(f"seed {seed}\n{sketched.source}")  # pytest shows it where the test fails
    if seed in EXPECTED_FAILURES:
        pytest.xfail(EXPECTED_FAILURES[seed])
    reports[seed] = check(sketched)


def test_the_models_have_something_to_show(reports: dict[int, Report]) -> None:
    """Most have scales, a good part is measured, and all is found of most of these."""
    if len(reports) < len(SEEDS) - len(EXPECTED_FAILURES):
        pytest.skip("not all seeds were run in this process")
    measured = [report for report in reports.values() if report.measured is not None]
    assert sum(report.num_scales > 0 for report in reports.values()) >= 40
    assert len(measured) >= 15
    assert sum(report.measured == report.claimed for report in measured) >= 0.8 * len(measured)


def test_a_seed_gives_one_model() -> None:
    first, second = sketch(3), sketch(3)
    assert first.source == second.source
    assert all(torch.equal(a, b) for a, b in zip(first.example, second.example, strict=True))
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())


def test_every_draw_runs_in_some_model() -> None:
    """A draw that never runs tests nothing."""
    seen = Counter(draw for seed in range(600) for draw in sketch(seed, steps=12, complete=False).draws)
    assert not set(DRAWS) - set(seen)


def test_control_a_wrong_law_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With relu's law for other activations, some of the first seeds that draw them fail."""
    relu = registry._RULES["aten::relu"].function
    names = {"silu", "sigmoid", "tanh", "gelu"}
    for name in names:
        monkeypatch.setitem(registry._RULES, f"aten::{name}", Rule(f"aten::{name}", "wrong", relu))
    drawn = [sketched for seed in range(200) if names & set((sketched := sketch(seed)).draws)]
    with pytest.raises(AssertionError, match="changes the outputs"):
        for sketched in drawn[:20]:
            check(sketched, oracle=False)


def test_control_a_lost_law_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timid rule for relu, a model of complete draws misses scales."""
    timid = registry._RULES["aten::tanh"].function
    monkeypatch.setitem(registry._RULES, "aten::relu", Rule("aten::relu", "timid", timid))
    drawn = [sketched for seed in range(0, 60, 3) if {"relu", "residual"} & set((sketched := sketch(seed)).draws)][:6]
    with pytest.raises(AssertionError, match="are found, though all rules are complete"):
        for sketched in drawn:
            check(sketched)


def test_control_a_raised_norm_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in the wrong direction is noticed."""
    step = fxenorm.Plan.step

    def backwards(plan: fxenorm.Plan, *, cycles: int) -> None:
        before = {name: value.detach().clone() for name, value in plan.model.named_parameters()}
        step(plan, cycles=cycles)
        with torch.no_grad():
            for name, value in plan.model.named_parameters():
                value.copy_(before[name] * (before[name] / value).nan_to_num(1.0))

    monkeypatch.setattr(fxenorm.Plan, "step", backwards)
    with pytest.raises(AssertionError, match="raise the norm"):
        for seed in range(0, 9, 3):
            check(sketch(seed), oracle=False)


def test_the_command_prints_seeds_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "1", "--seed", "3", "--show"]) == 0
    printed = capsys.readouterr().out
    assert "seeds 3 to 3" in printed and "class RandomModel" in printed and "1 models" in printed


def test_float64_defaults_are_put_back() -> None:
    before = torch.get_default_dtype()
    with pytest.raises(KeyError), default_dtype(torch.float64):
        raise KeyError
    assert torch.get_default_dtype() == before

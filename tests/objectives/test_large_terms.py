"""Sums of terms of large powers: what is said to be converged is, for every set of channels, whatever else is in the sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.objectives import Masses, Normalised, Term, Weights
from fxenorm.objectives.large_terms import sets_of
from fxenorm.objectives.problem import problem_of
from fxenorm.solve.convex import minimise

from ..helpers import TOLERANCE, outputs, relative_difference
from ..max_balance_check import Rows, sides_of_sets
from ..solve.test_large_p import IMAGE, entries_of_plan, made


class Spring(Term):
    """Half the squared distance of the log-scales from some point, times a weight."""

    lower_bound = 0.0

    def __init__(self, centre: Tensor, weight: float) -> None:
        self._centre, self._weight = centre, weight

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """The value and its derivative."""
        away = log_scales - self._centre
        return self._weight * away.square().sum() / 2, self._weight * away

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """The direction, times the weight."""
        return self._weight * direction


def masses(model: nn.Module, power: float) -> Masses:
    """Noise times the weights' own powers, so that they follow a rescaling as the weights do."""
    random = torch.Generator().manual_seed(5)
    found = {}
    for name, one in model.named_parameters():
        if one.ndim > 1:
            noise = torch.rand(one.shape, generator=random, dtype=torch.float64) + 0.1
            found[name] = noise * one.detach().abs() ** power
    return Masses(found, power=power)


SUMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "8 and masses": lambda model, _: Weights(p=8.0) + 0.3 * masses(model, 1.5),
    "8 and slopes": lambda model, _: Weights(p=8.0) + 1e-3 * masses(model, -2.0),
    "32 and masses": lambda model, _: Weights(p=32.0) + 0.3 * masses(model, 2.0),
    "32 and 12": lambda model, _: Weights(p=32.0) + 1e-6 * Weights(p=12.0),
    "512 and 64": lambda model, _: Weights(p=512.0) + Weights(p=64.0),
    "300 and slopes": lambda model, _: Weights(p=300.0) + masses(model, -40.0),
    "own": lambda model, moved: Weights(p=32.0) + Spring(-moved, 1e-3),
    "normalised": lambda model, _: Normalised(Weights(p=8.0)) + 0.3 * Weights(p=2.0),
    "steep and normalised": lambda model, _: Normalised(Weights(p=32.0)) + 1e-3 * Weights(p=2.0),
}
POWERS = {"32 and 12": [(32.0, 1.0), (12.0, 1e-6)], "512 and 64": [(512.0, 1.0), (64.0, 1.0)]}


def off_by_definition(rows: Rows, logs: np.ndarray, powers: np.ndarray) -> float:
    """The largest |log(in / out)| of the sets that summands above any value hold together.

    Args:
        rows: by summand its variables, of opposite signs.
        logs: the logarithms of the summands.
        powers: by which they follow log-scales.
    """
    worst = 0.0
    for sides in sides_of_sets(rows, logs):
        sums = [np.logaddexp.reduce(logs[side] + np.log(powers[side])) for side in sides if side.any()]
        worst = max(worst, abs(sums[0] - sums[1]) if len(sums) == 2 else 0.0)
    return worst


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_two_starts_end_at_the_same_weights(kind: str, name: str) -> None:
    """The function is kept, no objective rises, and sets of channels are balanced by definition where terms are norms."""
    model, reached = made(kind), []
    inputs = torch.zeros(2, 3, dtype=torch.float64) if kind == "chain" else IMAGE
    plan = fxenorm.analyze(model, inputs, batchnorm="folded")
    given = torch.randn(inputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    expected, moved = outputs(model, [given]), torch.zeros(plan.num_scales, dtype=torch.float64)
    for seed in range(2):
        step = torch.randn(plan.num_scales, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        plan.rescale(step)
        moved = moved + step
        result = plan.balance(objective=SUMS[name](model, moved))
        moved = moved + result.log_scales
        assert result.converged and result.imbalance_after <= 1e-6 and result.objective_after <= result.objective_before
        reached.append(torch.cat([one.detach().abs().log().reshape(-1) for one in model.parameters()]))
        assert relative_difference(expected, outputs(model, [given])) <= TOLERANCE
        if name in POWERS:
            found = [(*entries_of_plan(plan, p), p, weight) for p, weight in POWERS[name]]
            rows = [row for own, _, _, _ in found for row in own]
            logs = np.concatenate([p * own + math.log(weight) for _, own, p, weight in found])
            powers = np.concatenate([np.full(len(own), p) for own, _, p, _ in found])
            assert off_by_definition(rows, logs, powers) <= 2e-6 * powers.max()
    torch.testing.assert_close(reached[0], reached[1], rtol=0, atol=1e-5)


class Loop(nn.Module):
    """Two channels that strong weights hold together in both directions, joined to the rest by weak weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(a, b, bias=False) for a, b in ((1, 2), (2, 2), (2, 1)))
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[0.2], [0.0]]))
            self.inner.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
            self.last.weight.copy_(torch.tensor([[0.0, 0.1]]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) -> (B, 1)."""
        stream: Tensor = self.first(x)
        return self.last(stream + self.inner(stream).relu())


LOOPED: dict[str, tuple[Any, Callable[[float, float], tuple[float, float]]]] = {
    "norms": (
        Weights(p=32.0) + 0.5 * Weights(p=24.0),
        lambda a, b: (32 * a**32 + 12 * a**24, 32 * b**32 + 12 * b**24),
    ),
    "a strong one and a weak one": (
        1e30 * Weights(p=24.0) + Weights(p=2.0),
        lambda a, b: (24e30 * a**24 + 2 * a**2, 24e30 * b**24 + 2 * b**2),
    ),
    "normalised": (Normalised(Weights(p=32.0)) + 1e-9 * Weights(p=32.0), lambda a, b: (a, b)),
    "own": (
        1e15 * Weights(p=24.0) + Spring(torch.full((2,), 0.1, dtype=torch.float64), 1e-3),
        lambda a, b: (24e15 * a**24 + 2e-3 * math.log(a / 0.2), 24e15 * b**24 + 2e-3 * 0.1),
    ),
}


@pytest.mark.parametrize("name", LOOPED)
def test_channels_that_agree_to_all_digits_do_not_hide_a_set_that_is_off(name: str) -> None:
    """The derivative by both channels together is that of the weak weights alone, which are nothing beside the strong ones."""
    term, sides = LOOPED[name]
    model = Loop().double()
    plan = fxenorm.analyze(model, torch.zeros(2, 1, dtype=torch.float64))
    assert plan.num_scales == 2
    problem = problem_of(term, plan.rescaler.open(), boxed=False)
    limit = torch.full((2, 2), 10.0, dtype=torch.float64)
    sets = sets_of(problem.function, problem.held, limit)
    unsolved = minimise(problem.function, problem.held, limit, tol=1e-6, max_iterations=0, sets=sets)
    assert not unsolved.converged and unsolved.imbalance > 1e-2
    result = plan.balance(objective=term)
    up, down = sides(float(model.first.weight.detach()[0, 0]), float(model.last.weight.detach()[0, 1]))
    assert result.converged and result.log_scales.abs().max() > 0.03 and abs(up - down) <= 1e-4 * max(up, down)
    if name != "normalised":
        torch.testing.assert_close(model.inner.weight.detach(), torch.eye(2, dtype=torch.float64).flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["8 and masses", "8 and slopes", "normalised"])
def test_lbfgs_ends_where_balance_does(name: str) -> None:
    model = made("residual")
    plan = fxenorm.analyze(model, IMAGE, batchnorm="folded")
    zero = torch.zeros(plan.num_scales, dtype=torch.float64)
    term = SUMS[name](model, zero)
    function = plan.objective(term)
    at = zero.clone()
    optimizer = torch.optim.LBFGS([at], max_iter=3000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        value, gradient = function.value_and_gradient(at)
        at.grad = gradient / value
        return value.log()

    optimizer.step(closure)
    result = plan.balance(objective=term)
    assert result.converged and function.value_and_gradient(at)[0] >= function.value_and_gradient(result.log_scales)[0] - 1e-12
    torch.testing.assert_close(result.log_scales, at, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["32 and masses", "own", "steep and normalised"])
def test_limits_and_means_that_stay_are_kept(name: str) -> None:
    """In a box, variables stop at it and the rest is at its minimum: no way into the box lowers the function."""
    model = made("residual")
    plan = fxenorm.analyze(model, IMAGE, batchnorm="folded")
    term = SUMS[name](model, torch.full((plan.num_scales,), 0.5, dtype=torch.float64))
    function = plan.objective(term)
    result = plan.balance(objective=term, max_log_scale=0.05)
    at = result.log_scales
    assert result.converged and at.abs().max() <= 0.05 + 1e-12 and (at.abs() >= 0.05 - 1e-12).any()
    _, gradient = function.value_and_gradient(at)
    outward = gradient * at.sign() < 0
    inside = at.abs() < 0.05 - 1e-12
    sizes = function.log_sizes(at).exp()
    assert outward[~inside].all() and (gradient[inside].abs() / sizes[inside]).max() <= 1e-6


def test_large_powers_without_gains_keep_the_means() -> None:
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    torch.manual_seed(0)
    plan = fxenorm.analyze(model, torch.zeros(2, 6, dtype=torch.float64))
    term = Weights(p=24.0, gains=False) + 1e-3 * Weights(p=12.0, gains=False)
    result = plan.balance(objective=term)
    columns = model[1].weight.detach().abs()
    sizes = columns.pow(24).sum(0) * 24 + 1e-3 * 12 * columns.pow(12).sum(0)
    assert result.converged and any("mean" in str(item) for item in result.held)
    assert (sizes.max() / sizes.min()).log() <= 24e-5

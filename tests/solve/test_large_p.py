"""Large finite p: what is said to be converged is, for every set of channels, and by sums that lose nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.objectives import Masses, Weights
from fxenorm.solve.channel_sets.large_power import LargePower
from fxenorm.solve.channel_sets.moves import moves_of
from fxenorm.solve.channel_sets.sums import SetSums
from fxenorm.solve.iterate import solve
from fxenorm.solve.jacobi import solvable
from fxenorm.solve.max_balance.entries import Entries
from fxenorm.weights.objective import CurrentObjective

from ..helpers import TOLERANCE, load_tool, outputs, randomise, relative_difference
from ..max_balance_check import Rows, entries_of, matrix_of, sides_of_sets
from ..random_plans import Case
from ..solver_problems import chain, problem_of
from .test_max_balance import KINDS, gated_case, random_case, stream

BENCH = load_tool("bench_balance")
POWERS = [2.0, 3.0, 8.0, 32.0, 128.0, 256.0, 512.0, 1000.0]
IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def off_by_definition(rows: Rows, logs: np.ndarray, p: float) -> float:
    """The largest |log(in / out)| / p of the sets that entries above any value hold together, each over its largest entry."""
    worst = 0.0
    for inside, outside in sides_of_sets(rows, logs):
        if not inside.any() and not outside.any():
            continue  # no entry carries it
        sums = [np.logaddexp.reduce(p * logs[side]) for side in (inside, outside)]
        worst = max(worst, abs(sums[0] - sums[1]) / p)
    return worst


def slope_by_definition(rows: Rows, logs: np.ndarray, p: float) -> float:
    """The largest derivative of log F by a log-scale."""
    masses = np.exp(p * logs - np.logaddexp.reduce(p * logs))
    return float(np.abs(p * masses @ matrix_of(rows, 1 + max(max(row) for row in rows))).max())


class Residual(nn.Module):
    """Two blocks on a stream, each with its BatchNorm, as a small resnet18."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 3)."""
        x = self.into(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "chain":
        widths = [3, 6, 6, 6, 2]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).double()
    model = Residual() if name == "residual" else BENCH.UNet(2)
    return randomise(model.double(), (IMAGE,), seed=3).eval()


def entries_of_plan(plan: fxenorm.Plan, p: float | None = None) -> tuple[Rows, np.ndarray]:
    """The counted entries as they are now, of kernels their p-norms, by the plan's exponents; BatchNorms are folded."""
    rows: Rows = []
    logs: list[float] = []
    model, p = plan.model, plan.options.p if p is None else p
    modules = dict(model.named_modules())
    pairs = {"into.0": "into.1", **{f"blocks.{k}.{i}": f"blocks.{k}.{i + 1}" for k in range(2) for i in (0, 3)}}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        weight = parameter.detach().double()
        after = pairs.get(name.removesuffix(".weight"), "")
        norm = modules.get(after)
        places = [(c, ids.flatten(2)[..., 0].numpy() if ids.ndim > 2 else ids.numpy()) for c, ids in plan.exponents.get(name, [])]
        if isinstance(norm, nn.BatchNorm2d):
            factor = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
            weight = weight * factor.reshape(-1, 1, 1, 1)
            places += [(c, ids[:, None].numpy()) for c, ids in plan.exponents[f"{after}.weight"]]
        sizes = (p * weight.abs().log()).flatten(2).logsumexp(2) / p if weight.ndim > 2 else weight.abs().log()
        for place in np.ndindex(*sizes.shape):
            row: dict[int, int] = {}
            for coefficient, ids in places:
                k = int(np.broadcast_to(ids, sizes.shape)[place])
                if k >= 0:
                    row[k] = row.get(k, 0) + coefficient
            if row and math.isfinite(float(sizes[place])):
                rows.append(row)
                logs.append(float(sizes[place]))
    return rows, np.array(logs)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("name", ["chain", "residual", "unet"])
def test_converged_is_true_of_every_set_of_channels(name: str, p: float) -> None:
    """At the weights as they are written, worked out from exponents and weights alone; from two starts the same."""
    model = made(name)
    inputs = torch.zeros(2, 3, dtype=torch.float64) if name == "chain" else IMAGE
    plan = fxenorm.analyze(model, inputs, p=p, batchnorm="folded")
    reached = []
    for seed in range(2):
        random = torch.Generator().manual_seed(seed)
        plan.rescale(torch.randn(plan.num_scales, dtype=torch.float64, generator=random))
        given = torch.randn(inputs.shape, dtype=torch.float64, generator=random)
        expected = outputs(model, [given])
        result = plan.balance()
        assert result.converged and result.solver == "newton" and not result.held and result.iterations <= 20
        assert result.passes == 3 if p <= 4 else 4 <= result.passes <= 10
        assert relative_difference(expected, outputs(model, [given])) <= TOLERANCE
        rows, logs = entries_of_plan(plan)
        assert off_by_definition(rows, logs, p) <= 1e-6
        assert slope_by_definition(rows, logs, p) <= p * p * 1e-6
        reached.append(np.sort(logs))
    np.testing.assert_allclose(reached[0], reached[1], rtol=0, atol=1e-5)


def numbers(problem: CurrentObjective) -> tuple[np.ndarray, np.ndarray]:
    free = solvable(*problem.log_sums(), problem.held).numpy()
    return np.zeros(len(free)), free


def weak_link(p: float) -> Case:
    """Two channels that strong weights hold together in both directions, joined to the rest by weak weights, out of balance."""
    one, other = np.array([0]), np.array([1])
    terms = [[(1, one), (-1, other)], [(1, other), (-1, one)], [(1, one)], [(-1, other)]]
    values = [1.0, 1.0, 0.2, 0.1]
    tensors = [torch.tensor([value], dtype=torch.float64) for value in values]
    return Case(2, p, [(1,)] * 4, terms, [0.0] * 4, tensors)


@pytest.mark.parametrize("p", [32.0, 300.0])
def test_channels_that_agree_to_all_digits_do_not_hide_a_set_that_is_off(p: float) -> None:
    """(0.2 / 0.1) ^ p is nothing beside 1 where N and P of each channel are summed: there is no imbalance to be seen in them."""
    problem = problem_of(weak_link(p))
    assert problem.imbalance() == 0.0
    off = LargePower(problem, lambda scales: scales).imbalance(torch.zeros(2, dtype=torch.float64), problem.held, 1e-6)
    assert off == pytest.approx(math.log(2.0), rel=1e-9)
    solution = solve(problem, tol=1e-6, max_iterations=20, solver="newton")
    rows, logs = entries_of(weak_link(p), solution.log_scales.numpy())
    assert solution.converged and off_by_definition(rows, logs, p) <= 1e-6
    unsolved = solve(problem, tol=1e-6, max_iterations=0, solver="newton")
    assert not unsolved.converged and unsolved.imbalance == pytest.approx(math.log(2.0), rel=1e-9)


@pytest.mark.parametrize("p", [8.0, 64.0, 512.0])
@pytest.mark.parametrize("kind", KINDS)
def test_entries_of_any_exponents(kind: str, p: float) -> None:
    """At the answer the derivative by every move is zero, relative to what it moves; general entries too."""
    for seed in range(4):
        case = random_case(kind, seed, p)
        solution = solve(problem_of(case), tol=1e-7, max_iterations=60, solver="newton")
        rows, logs = entries_of(case, solution.log_scales.numpy())
        exponents = matrix_of(rows, case.num_scales)
        masses = np.exp(p * logs - np.logaddexp.reduce(p * logs))
        assert solution.converged and np.abs(masses @ exponents).max() <= p * 1e-7 * masses.max() * 10


@pytest.mark.parametrize("p", [12.0, 64.0, 300.0])
def test_limits_and_held_variables_are_kept(p: float) -> None:
    case = dataclasses.replace(stream(1), p=p)
    held = np.zeros(case.num_scales, dtype=bool)
    held[3] = True
    free = solve(problem_of(case, None, held), tol=1e-7, max_iterations=60, solver="newton")
    size = float(free.log_scales.abs().max()) / 3
    problem = dataclasses.replace(problem_of(case, None, held), limit=torch.full((2, case.num_scales), size, dtype=torch.float64))
    solution = solve(problem, tol=1e-7, max_iterations=60, solver="newton")
    scales, at_limit = solution.log_scales, solution.at_limit
    assert free.converged and free.log_scales[3] == 0 == scales[3]
    assert scales.abs().max() <= size and at_limit.any()
    negative, positive = problem.log_sums(scales)
    outward = torch.where(scales > 0, negative - positive, positive - negative)
    inside = ~at_limit & ~problem.held
    assert (outward[at_limit] > 0).all() and ((negative - positive)[inside].abs() / p).max() <= 1e-6


def test_moves_are_a_basis_and_change_no_entry_stronger_than_the_one_they_were_used_up_by() -> None:
    for kind in KINDS:
        for seed in range(5):
            case = random_case(kind, seed)
            rows, logs = entries_of(case, np.zeros(case.num_scales))
            width = max(map(len, rows))
            ids, coefficients = (np.full((len(rows), width), fill, dtype=np.int64) for fill in (-1, 0))
            for place, row in enumerate(rows):
                ids[place, width - len(row) :] = sorted(row)
                coefficients[place, width - len(row) :] = [row[k] for k in sorted(row)]
            entries = Entries(ids, coefficients, logs)
            everything = np.arange(case.num_scales)
            moves = moves_of(entries, np.zeros(case.num_scales), everything).toarray()
            assert np.linalg.matrix_rank(moves) == case.num_scales == moves.shape[1]
            changes = matrix_of(rows, case.num_scales) @ moves
            largest = [logs[np.abs(change) > 1e-9].max() for change in changes.T]
            assert all(later <= earlier for earlier, later in itertools.pairwise(largest))
            before = np.zeros(case.num_scales)
            assert SetSums(8.0, entries, moves_of(entries, before, everything)).largest(before).max(axis=0) == pytest.approx(
                largest
            )


def test_a_sum_by_channels_that_bounds_all_sets_needs_no_look_at_all_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = chain(5, 6, p=8.0)

    def none(*_: object) -> None:
        raise AssertionError("looked at all entries")

    monkeypatch.setattr("fxenorm.solve.channel_sets.large_power.look", none)
    assert solve(problem, tol=1e-6, max_iterations=30, solver="newton").converged


def test_gates_with_layer_weights_at_a_large_power() -> None:
    """Three variables an entry, exponents of 2, and factors by layer, which count for finite p."""
    case = dataclasses.replace(gated_case(), p=200.0, log_weights=[0.0, 5.0, -50.0, 0.0, 100.0, 0.0])
    solution = solve(problem_of(case), tol=1e-7, max_iterations=60, solver="newton")
    logs, exponents = [], []
    for shape, terms, tensor, weight in zip(case.shapes, case.terms, case.tensors, case.log_weights, strict=True):
        one = dataclasses.replace(case, shapes=[shape], terms=[terms], tensors=[tensor], log_weights=[0.0])
        rows, own = entries_of(one, solution.log_scales.numpy())
        logs.append(own + weight / case.p)
        exponents.append(matrix_of(rows, case.num_scales))
    values = 200.0 * np.concatenate(logs)
    masses = np.exp(values - values.max())
    assert solution.converged and np.abs(masses @ np.concatenate(exponents)).max() <= 1e-4


@pytest.mark.parametrize("p", [12.0, 300.0])
def test_a_term_of_a_large_power_is_the_norm_of_that_power(p: float) -> None:
    """Masses of a large negative power are solved too: all sides are turned around."""
    model = made("residual")
    plan = fxenorm.analyze(model, IMAGE, p=p, batchnorm="folded")
    expected = plan.balance()
    plan.rescale(-expected.log_scales)
    found = plan.balance(objective=Weights())
    assert found.converged and found.solver == expected.solver == "newton"
    torch.testing.assert_close(found.log_scales, expected.log_scales, rtol=0, atol=1e-7)
    assert off_by_definition(*entries_of_plan(plan), p) <= 1e-6
    chained = made("chain")
    sizes = {name: one.detach().abs() for name, one in chained.named_parameters() if one.ndim > 1}
    masses = {name: (one / one.max()).clamp(min=0.1) ** p for name, one in sizes.items()}
    other = fxenorm.analyze(chained, torch.zeros(2, 3, dtype=torch.float64))
    turned = other.balance(objective=Masses(masses, power=-p))
    rows, logs = [], []
    for name, mass in masses.items():
        for place in np.ndindex(*mass.shape):
            ids = [(c, int(np.broadcast_to(ids.numpy(), mass.shape)[place])) for c, ids in other.exponents.get(name, [])]
            rows.append({k: -c for c, k in ids if k >= 0})
            logs.append(float(mass[place].log()) / p + sum(-c * float(turned.log_scales[k]) for c, k in ids if k >= 0))
    moved = [(row, value) for row, value in zip(rows, logs, strict=True) if row]
    assert turned.converged and turned.objective_after < turned.objective_before
    assert off_by_definition([row for row, _ in moved], np.array([value for _, value in moved]), p) <= 1e-6


class Stream(nn.Module):
    """Layers that read and write one stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width, bias=False), nn.Linear(width, 8, bias=False)
        self.inner = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 8) -> (B, 8)."""
        x = self.first(x).relu()
        for layer in self.inner:
            x = x + layer(x).relu()
        return self.last(x)


@pytest.mark.parametrize("p", [40.0, 90.0])
def test_rounding_of_the_norm_does_not_keep_newton_between_two_points(p: float) -> None:
    """Rows that differ by some e^10: their 40th powers are nothing beside the largest, by which steps are judged."""
    torch.manual_seed(0)
    model = Stream(128).double()
    plan = fxenorm.analyze(model, torch.randn(2, 8, dtype=torch.float64), p=p)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_((4 * torch.randn(weight.shape[0], 1, generator=generator, dtype=torch.float64)).exp())
    result = plan.balance(max_iterations=40)
    assert result.converged and result.imbalance_after <= 1e-6 and not result.held


@pytest.mark.parametrize("p", [8.0, 32.0])
def test_newtons_method_goes_on_before_all_entries_are_looked_at(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where p is small all weights of a wide layer matter: a look at them holds as many numbers as the model."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("all entries are looked at")

    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(100, 100, bias=False), nn.ReLU())]
    plan = fxenorm.analyze(nn.Sequential(*layers), torch.zeros(1, 100), p=p)
    plan.rescale(torch.randn(plan.num_scales, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    monkeypatch.setattr("fxenorm.solve.channel_sets.large_power.look", refuse)
    assert plan.balance(tol=1e-4).converged
    assert float(plan.channel_imbalance().max()) <= 1e-4

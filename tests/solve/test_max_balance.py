"""p = inf: the answer is the one whose sorted entries are least, by definition; and the residual says how far others are."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.solve.iterate import solve
from fxenorm.solve.jacobi import solvable
from fxenorm.solve.max_balance.contraction import contracted
from fxenorm.solve.max_balance.levels import bottleneck_levels
from fxenorm.solve.max_balance.residual import residual
from fxenorm.weights.objective import CurrentObjective

from ..max_balance_check import (
    entries_of,
    in_combination,
    least_by_definition,
    matrix_of,
    on_cycles,
    residual_by_definition,
)
from ..random_plans import Case
from ..solver_problems import chain, gated, problem_of

KINDS = {
    "plain": [(1,), (-1,), (1, -1), (1, -1)],
    "any signs": [(1,), (-1,), (1, 1), (-1, -1), (1, -1), (2,)],
    "several variables": [(1,), (-1,), (1, -1), (1, -1, -1), (-1, 1, 1)],
    "larger exponents": [(1,), (-2,), (2, -1), (1, -2, 2), (-1, 1), (2, 1, -2)],
}


def random_case(kind: str, seed: int, p: float = math.inf) -> Case:
    """Small tensors of single entries whose objective has a minimum: every entry is part of a combination that is zero."""
    random = np.random.default_rng(seed)
    while True:
        count = int(random.integers(2, 5))
        shapes, terms, tensors = [], [], []
        for coefficients in KINDS[kind]:
            size = int(random.integers(2, 2 + count))
            ids = np.array([random.permutation(count + 1)[: len(coefficients)] for _ in range(size)]).T
            if len(ids) < len(coefficients):
                continue
            shapes.append((size,))
            terms.append([(c, np.where(own == count, -1, own)) for c, own in zip(coefficients, ids, strict=True)])
            tensors.append(torch.from_numpy(random.normal(size=size) * np.exp(random.normal(size=size))))
        case = Case(count, p, shapes, terms, [0.0] * len(shapes), tensors)
        rows, _ = entries_of(case, np.zeros(count))
        exponents = matrix_of(rows, count)
        if (exponents != 0).any(axis=0).all() and all(in_combination(exponents, row) for row in range(len(rows))):
            return case


def answer(problem: CurrentObjective) -> np.ndarray:
    """The log-scales of p = inf."""
    solution = solve(problem, tol=1e-10, max_iterations=5, solver="max-balance")
    assert solution.converged
    return solution.log_scales.numpy()


def free_of(problem: CurrentObjective) -> np.ndarray:
    """The variables that move."""
    return solvable(*problem.log_sums(), problem.held).numpy()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_the_sorted_entries_are_the_least(kind: str, seed: int) -> None:
    """Against a sequence of linear programs, which is the definition; and no other point has the residual 0."""
    case = random_case(kind, seed)
    problem = problem_of(case)
    scales = answer(problem)
    rows, logs = entries_of(case, scales)
    before = entries_of(case, np.zeros(case.num_scales))[1]
    expected = least_by_definition(matrix_of(rows, case.num_scales), before)
    np.testing.assert_allclose(np.sort(logs), np.sort(expected), rtol=0, atol=1e-8)
    assert residual(problem, scales, free_of(problem)) <= 1e-9
    random = np.random.default_rng(seed)
    other = scales + 1e-3 * random.normal(size=len(scales))
    moved = entries_of(case, other)[1]
    assert not np.allclose(moved, logs, atol=1e-5) and residual(problem, other, free_of(problem)) > 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_is_its_definition(kind: str, seed: int) -> None:
    """Anywhere: the least r such that each entry is in a combination, which is zero, of itself and of entries >= x_e - r."""
    case = random_case(kind, seed)
    scales = np.random.default_rng(seed).normal(size=case.num_scales)
    rows, logs = entries_of(case, scales)
    worst = residual_by_definition(matrix_of(rows, case.num_scales), logs)
    problem = problem_of(case)
    assert residual(problem, scales, free_of(problem)) == pytest.approx(worst, abs=1e-9)
    if kind in ("plain", "any signs"):
        assert on_cycles(rows, logs, worst + 1e-9) and not on_cycles(rows, logs, worst - 1e-6)


def stream(seed: int = 0, width: int = 5) -> Case:
    """A residual stream with two branches: whole sets of channels can move against one another."""
    random = np.random.default_rng(seed)
    ids = [np.arange(start, start + width) for start in range(0, 3 * width, width)]
    own, one, two = ids
    terms: list[list[tuple[int, np.ndarray]]] = [
        [(1, own[:, None])],
        [(1, one[:, None]), (-1, own[None, :])],
        [(1, own[:, None]), (-1, one[None, :])],
        [(1, two[:, None]), (-1, own[None, :])],
        [(1, own[:, None]), (-1, two[None, :])],
        [(-1, own[None, :])],
    ]
    tensors = [torch.from_numpy(random.normal(size=(width, width)) * np.exp(random.normal(size=(width, 1)))) for _ in terms]
    return Case(3 * width, math.inf, [(width, width)] * len(terms), terms, [0.0] * len(terms), tensors)


def test_balanced_channels_are_not_enough_where_a_stream_is() -> None:
    """Sweeps end where each channel is balanced, in another place from every start; the check and the residual see it."""
    case = stream()
    exact = answer(problem_of(case))
    assert on_cycles(*entries_of(case, exact), 1e-9)
    reached = []
    for seed in range(3):
        start = torch.from_numpy(2 * np.random.default_rng(seed).normal(size=case.num_scales))
        problem = problem_of(case, np.repeat(np.arange(3), 5))
        sweeps = solve(problem, tol=1e-9, max_iterations=5000, start=start, solver="gauss-seidel")
        scales = sweeps.log_scales.numpy()
        assert sweeps.converged and not on_cycles(*entries_of(case, scales), 1e-6)
        assert residual(problem, scales, free_of(problem)) > 1e-4
        reached.append(scales)
    assert np.abs(reached[0] - reached[1]).max() > 1e-3
    tops = [np.sort(entries_of(case, scales)[1])[::-1].round(8).tolist() for scales in (exact, *reached)]
    assert all(tops[0] <= other for other in tops[1:]), "the answer's sorted entries are the least of them all"


@pytest.mark.parametrize("kind", ["dense", "heavy", "sparse"])
def test_chains_of_any_weights(kind: str) -> None:
    problem = chain(12, 24, kind, p=math.inf)
    scales = answer(problem)
    assert not scales[problem.held.numpy()].any()
    assert residual(problem, scales, free_of(problem)) <= 1e-12
    start = torch.from_numpy(np.where(problem.held, 0.0, np.random.default_rng(0).normal(size=len(scales))))
    again = solve(problem, tol=1e-10, max_iterations=5, start=start, solver="max-balance").log_scales
    np.testing.assert_allclose(again.numpy(), scales, rtol=0, atol=1e-11)


def test_it_is_the_limit_of_large_p() -> None:
    """The distance falls like 1 / p."""
    exact = answer(problem_of(stream()))
    distances = []
    for p in (4.0, 16.0, 64.0):
        problem = problem_of(dataclasses.replace(stream(), p=p), np.repeat(np.arange(3), 5))
        found = solve(problem, tol=1e-8, max_iterations=100, solver="newton")
        assert found.converged
        distances.append(float(np.abs(found.log_scales.numpy() - exact).max()))
    assert distances[2] < 0.3 * distances[1] < 0.1 * distances[0] < 0.1


def test_limits_are_kept_and_the_rest_is_the_answer_for_them() -> None:
    """Variables at their limit would go on; the others are max-balanced as if those were fixed."""
    case = stream(1)
    free = answer(problem_of(case))
    size = float(np.abs(free).max()) / 3
    problem = dataclasses.replace(problem_of(case), limit=torch.full((2, case.num_scales), size, dtype=torch.float64))
    solution = solve(problem, tol=1e-9, max_iterations=5, solver="max-balance")
    scales = solution.log_scales.numpy()
    at_limit = solution.at_limit.numpy()
    assert np.abs(scales).max() <= size and at_limit.any() and not solution.converged
    negative, positive = (sums.numpy() for sums in problem.log_sums(solution.log_scales))
    outward = np.where(scales > 0, negative - positive, positive - negative)
    assert (outward[at_limit] > 0).all() and np.abs(negative - positive)[~at_limit].max() <= 1e-9
    assert residual(problem, scales, ~at_limit) <= 1e-9


def test_held_variables_stay_and_their_weights_count() -> None:
    case = stream(2)
    held = np.zeros(case.num_scales, dtype=bool)
    held[5:8] = True
    problem = problem_of(case, None, held)
    scales = answer(problem)
    assert not scales[held].any() and scales[~held].all()
    rows, logs = entries_of(case, scales)
    kept = [({k: v for k, v in row.items() if not held[k]}, value) for row, value in zip(rows, logs, strict=True)]
    kept = [item for item in kept if item[0]]
    assert on_cycles([row for row, _ in kept], np.array([value for _, value in kept]), 1e-9)


@pytest.mark.parametrize("kind", ["several variables", "larger exponents", "gates"])
def test_parts_that_are_too_large_for_linear_programs_have_the_same_answer_by_large_p(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is said of the residual is a bound of what it is by linear programs, at the answer and elsewhere."""
    for seed in range(1 if kind == "gates" else 4):
        case = dataclasses.replace(gated_case(), p=math.inf) if kind == "gates" else random_case(kind, seed)
        problem = problem_of(case)
        free, exact = free_of(problem), answer(problem)
        other = exact + 1e-3 * np.random.default_rng(seed).normal(size=len(exact))
        true = residual(problem, other, free)
        with monkeypatch.context() as patch:
            patch.setattr("fxenorm.solve.max_balance.parts._MOST_VARIABLES", 1)
            near = answer(problem)
            assert np.abs(near - exact).max() <= 1e-9
            assert 0 < residual(problem, near, free) <= 1e-8
            assert true <= residual(problem, other, free) <= 0.05
            far = exact + np.random.default_rng(seed).normal(size=len(exact))
            assert residual(problem, far, free) < 100.0


class Gated(nn.Module):
    """A residual stream with gated layers whose outputs are rescaled too: three variables a weight."""

    def __init__(self, width: int = 8, inner: int = 24) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, width, bias=False), nn.Linear(width, 3, bias=False)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 4) -> (B, 3)."""
        x = self.into(x).relu()
        return self.out((x + self.down(self.gate(x).relu() * self.up(x).relu())).relu())


def test_a_model_of_gates_has_one_answer_from_any_start() -> None:
    torch.manual_seed(0)
    model = Gated().double()
    plan = fxenorm.analyze(model, torch.randn(2, 4, dtype=torch.float64), p=math.inf)
    assert plan.num_scales > 50
    reached = []
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        plan.rescale(torch.randn(plan.num_scales, dtype=torch.float64, generator=random))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fxenorm.solve.max_balance.parts._MOST_VARIABLES", 48)
            result = plan.balance()
        assert result.converged and result.residual is not None and 0 < result.residual <= 1e-7
        reached.append({key: tensor.clone() for key, tensor in model.state_dict().items()})
    for state in reached[1:]:
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, reached[0][key], rtol=1e-9, atol=0)


def gated_case() -> Case:
    """The tensors of `gated`, as a case."""
    problem = gated(2.0)
    blocks = problem.program.blocks
    terms = [[(c, np.where(ids.numpy() == 12, -1, ids.numpy())) for c, ids in block.terms] for block in blocks]
    tensors = [matrix.sqrt() for matrix in problem.matrices]
    return Case(12, 2.0, [block.shape for block in blocks], terms, [0.0] * len(blocks), tensors)


@pytest.mark.parametrize("seed", range(20))
def test_levels_and_contraction_on_random_graphs(seed: int) -> None:
    """By strong components at every threshold; with ties, and for graphs that are not strongly connected."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    random = np.random.default_rng(seed)
    count = int(random.integers(2, 12))
    ring = random.permutation(count)
    tails = np.concatenate([random.integers(0, count, 4 * count), ring])
    heads = np.concatenate([random.integers(0, count, 4 * count), np.roll(ring, 1)])
    tails, heads = tails[tails != heads], heads[tails != heads]
    lengths = random.normal(size=len(tails)) * 3
    lengths = lengths.round() if seed % 2 else lengths

    def by_definition(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        found = np.full((count, count), -np.inf)
        for value in sorted(set(values[chosen]), reverse=True):
            kept = chosen & (values >= value)
            graph = csr_array((np.ones(kept.sum()), (tails[kept], heads[kept])), shape=(count, count))
            part = connected_components(graph, directed=True, connection="strong")[1]
            found = np.where((part[:, None] == part[None, :]) & (found == -np.inf), value, found)
        np.fill_diagonal(found, np.inf)
        return found

    one, other = (places.reshape(-1) for places in np.mgrid[:count, :count])
    for chosen in (np.ones(len(tails), dtype=bool), random.random(len(tails)) < 0.5):
        levels = bottleneck_levels(count, tails[chosen], heads[chosen], lengths[chosen])
        assert np.array_equal(levels.of(one, other).reshape(count, count), by_definition(lengths, chosen))
    found = contracted(count, tails, heads, lengths)
    moved = lengths + found.potential[heads] - found.potential[tails]
    expected = by_definition(moved.round(9), np.ones(len(tails), dtype=bool))
    assert found.potential[0] == 0 and (moved <= expected[tails, heads] + 1e-8).all()
    np.testing.assert_allclose(found.levels.of(one, other).reshape(count, count), expected, rtol=0, atol=1e-8)


def test_arcs_meet_levels_where_the_strong_components_say_so() -> None:
    """All arcs of an answer meet its levels; some of them do where, and only where, their own levels are no lower."""
    answers = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        count = int(random.integers(2, 14))
        ring, more = random.permutation(count), int(random.integers(0, 4 * count))
        tails = np.concatenate([random.integers(0, count, more), ring])
        heads = np.concatenate([random.integers(0, count, more), np.roll(ring, 1)])
        lengths = 3 * random.normal(size=len(tails))
        lengths = lengths.round() if seed % 2 else lengths
        found = contracted(count, tails, heads, lengths)
        values = lengths + found.potential[heads] - found.potential[tails]
        assert found.levels.are_met((tails, heads, values), 1e-9)
        one, other = (places[~np.eye(count, dtype=bool)] for places in np.mgrid[:count, :count])
        for share in (0.7, 0.9, 0.95):
            kept = random.random(len(values)) < share
            kept[int(values.argmin())] = True  # what is below all arcs says nothing of them
            arcs = tails[kept], heads[kept], values[kept]
            no_lower = bottleneck_levels(count, *arcs).of(one, other) >= found.levels.of(one, other) - 1e-9
            answers.append(bool(no_lower.all()))
            assert found.levels.are_met(arcs, 1e-9) == answers[-1]
    assert 20 < sum(answers) < len(answers) - 20


def test_at_the_answer_the_residual_takes_no_look_at_all_entries() -> None:
    """The look that ended the rounds says it, with the strong components; elsewhere, and without it, all is looked at."""
    problem = chain(12, 24, "dense", p=math.inf)
    scales, free = answer(problem), free_of(problem)
    looks = problem.looks
    assert residual(problem, scales, free) == 0.0 and problem.looks == looks
    again = problem.without_memory()
    assert residual(again, scales, free) <= 1e-12 and again.looks > looks
    decided = problem.remembered()
    assert decided is not None and decided.values is not None and decided.levelled is not None
    worst = int(decided.values.argmax())
    values = np.where(np.arange(len(decided.values)) == worst, decided.values - 1.0, decided.values)
    problem.remember(dataclasses.replace(decided, values=values))
    assert residual(problem, scales, free) <= 1e-12 and problem.looks > looks, "arcs that do not meet their levels show nothing"
    for kept in (scales + 1e-3 * free, scales):
        problem.remember(decided)
        looks = problem.looks
        residual(problem, kept, free)
        assert (problem.looks > looks) == (kept is not scales)

"""The parts of Newton's method: one scalar a group, conjugate gradients, a line search; and few iterations also beside limits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from fxenorm.solve import get_solver, newton
from fxenorm.solve.coarse import CoarseProblem, coarse_correction, coarse_problem
from fxenorm.solve.iterate import solve
from fxenorm.solve.jacobi import solvable
from fxenorm.solve.newton import _line_search, conjugate_gradients
from fxenorm.solve.sparse_coarse import SparseCoarseProblem

from ..solver_problems import by_definition, chain, gated, ring


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("limit", [None, 0.4])
@pytest.mark.parametrize(
    "make", [lambda: chain(6, 5, bad_start=1.0), lambda: chain(6, 5, "heavy"), lambda: gated(1.0), lambda: gated(2.0)]
)
def test_one_scalar_a_group_is_solved_for_exactly(
    make: Any, limit: float | None, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By definition: over each group, N and P have one sum; or a variable has come to its limit on the way there."""
    monkeypatch.setattr("fxenorm.solve.coarse._MOST_DENSE", 1000 if dense else 0)
    problem = make()
    if limit is not None:
        problem = dataclasses.replace(problem, limit=torch.full((2, problem.held.numel()), 300.0, dtype=torch.float64))
        problem.limit[0, 1], problem.limit[1, 7] = limit, limit / 2
    start = torch.zeros(problem.held.numel(), dtype=torch.float64)
    if limit is not None:
        start[~problem.held] = 0.1 * torch.randn(
            int((~problem.held).sum()), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        start[1], start[7] = limit / 4, -limit / 4
    free = solvable(*problem.log_sums(start), problem.held)
    scales = coarse_correction(problem, start, free)
    change = scales - start
    assert float(problem.log_objective(scales)) < float(problem.log_objective(start)) and not change[~free].any()
    for label in problem.labels.unique():
        own = change[free & (problem.labels == label)]
        assert (own - own[:1]).abs().max() <= 1e-12
    touches = False
    if limit is not None:
        assert (scales <= problem.limit[0] + 1e-12).all() and (scales >= -problem.limit[1] - 1e-12).all()
        stuck = [k for k, end in ((1, limit), (7, -limit / 2)) if abs(float(scales[k]) - end) < 1e-12]
        touches = bool(stuck)
        if touches:
            again = coarse_correction(problem, scales, free)
            assert torch.equal(again[stuck], scales[stuck]), "what has come to its limit stays there"
            assert float(problem.log_objective(again)) < float(problem.log_objective(scales)), "and the others of its group go on"
    if not touches:
        negative, positive = (torch.where(free, sums.exp(), 0.0) for sums in problem.log_sums(scales))
        for label in problem.labels.unique():
            own = problem.labels == label
            assert abs(float((positive - negative)[own].sum())) <= 1e-6 * float((positive + negative)[own].sum())


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("make", [lambda: chain(6, 5, bad_start=1.0), lambda: chain(6, 5, "heavy"), lambda: gated(1.0)])
def test_the_coarse_matrix_is_solved_whatever_holds_it(make: Any, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the objective as a function of one scalar a group: second derivatives by autograd, times the solution."""
    monkeypatch.setattr("fxenorm.solve.coarse._MOST_DENSE", 1000 if dense else 0)
    problem = make()
    count = int(problem.labels.max()) + 1
    scales = 0.3 * torch.randn(problem.held.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scales[problem.held] = 0.0
    labels = torch.where(problem.held, count, problem.labels)

    def of_scalars(scalars: torch.Tensor) -> torch.Tensor:
        """In units of the objective where the scalars are 0, over p^2."""
        moved = scales + torch.nn.functional.pad(scalars, (0, 1))[labels]
        return by_definition(problem, moved) / problem.log_objective(scales).exp() / problem.p**2

    hessian = torch.autograd.functional.hessian(of_scalars, torch.zeros(count, dtype=torch.float64))
    coarse = coarse_problem(problem, scales, labels, count)
    assert coarse is not None
    solve_coarse = coarse.preconditioner(problem.log_objective(scales))
    assert solve_coarse is not None
    wanted = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(hessian @ solve_coarse(wanted), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conditioned", [False, True])
def test_conjugate_gradients_solve_in_as_many_products_as_there_are_unknowns(conditioned: bool) -> None:
    random, size = torch.Generator().manual_seed(3), 12
    root = torch.randn(size, size, dtype=torch.float64, generator=random)
    matrix = root @ root.T + 0.5 * torch.eye(size, dtype=torch.float64)
    diagonal, labels = matrix.diagonal(), torch.arange(size) % 3
    wanted = torch.randn(size, dtype=torch.float64, generator=random)
    asked: list[torch.Tensor] = []

    class Counted:
        """The matrix, relative to its diagonal."""

        def product(self, vector: torch.Tensor) -> torch.Tensor:
            asked.append(vector)
            return (matrix @ vector) / diagonal

    by_group = torch.nn.functional.one_hot(labels, 3).to(torch.float64)
    small = by_group.T @ matrix @ by_group / diagonal.max()
    weights = diagonal / diagonal.max()
    coarse = (lambda totals: torch.linalg.solve(small, totals)) if conditioned else None
    found = conjugate_gradients(Counted(), wanted, weights, labels, 3, coarse, 1e-9, 100)
    torch.testing.assert_close(matrix @ found / diagonal, wanted, rtol=0, atol=1e-8)
    assert len(asked) <= size + 2
    few = conjugate_gradients(Counted(), wanted, weights, labels, 3, coarse, 1e-9, 3)
    assert len(asked) <= size + 5 and float((few * diagonal) @ wanted) > 0, "a direction of descent all the same"


@pytest.mark.parametrize("good", [0, 1, 3])
@pytest.mark.parametrize("strength", [1.0, 100.0])
def test_conjugate_gradients_end_where_the_matrix_in_front_is_not_positive(strength: float, good: int) -> None:
    """Rounding can make it so; what was reached until then is returned, and nothing moves against the residual."""
    random, size = torch.Generator().manual_seed(3), 12
    root = torch.randn(size, size, dtype=torch.float64, generator=random)
    matrix = root @ root.T + 0.5 * torch.eye(size, dtype=torch.float64)
    diagonal, labels = matrix.diagonal(), torch.arange(size) % 3
    weights = diagonal / diagonal.max()
    wanted = 1e-3 * (1.0 + torch.rand(size, dtype=torch.float64, generator=random))
    asked, answered = [0], [0]

    class Counted:
        """The matrix, relative to its diagonal."""

        def product(self, vector: torch.Tensor) -> torch.Tensor:
            asked[0] += 1
            return (matrix @ vector) / diagonal

    def turning(totals: torch.Tensor) -> torch.Tensor:
        """Nothing is in front at first; later the totals come back with the wrong sign."""
        answered[0] += 1
        return torch.zeros_like(totals) if answered[0] <= good else -strength * 1e3 * totals

    found = conjugate_gradients(Counted(), wanted, weights, labels, 3, turning, 1e-9, 100)
    assert asked[0] == good
    if good:
        torch.testing.assert_close(found, conjugate_gradients(Counted(), wanted, weights, labels, 3, None, 1e-9, good))
        assert float((weights * found) @ wanted) > 0
    else:
        assert not found.any()


def test_conjugate_gradients_end_where_the_matrix_in_front_leaves_nothing() -> None:
    """The product of residual and correction is exactly 0 here, and would be divided by."""
    wanted, labels = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.int64)

    class Identity:
        def product(self, vector: torch.Tensor) -> torch.Tensor:
            return vector

    found = conjugate_gradients(Identity(), wanted, torch.ones_like(wanted), labels, 1, lambda totals: -totals, 1e-9, 100)
    assert not found.any()


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("overshoot", [0.5, 1.0, 1.9, 2.0 - 1e-6, 2.2, 3.0, 3.9, 5.0, 9.0])
def test_the_line_search_lowers_the_objective_in_proportion_and_gives_away_at_most_half(overshoot: float, unit: float) -> None:
    """Whatever the unit of the weights. Along the line the objective is a cosh, back where it started at twice its minimum."""
    minimum = 0.4
    problem = ring([unit * math.exp(-minimum), unit * math.exp(minimum)], 2.0)
    start = torch.zeros(2, dtype=torch.float64)
    log_negative, log_positive = problem.log_sums(start)
    sign = float((log_negative - log_positive).sign()[0])
    direction = torch.tensor([sign * overshoot * minimum, 0.0], dtype=torch.float64)

    def relative(length: float) -> float:
        """By definition: the objective at a part of the direction over that at the start."""
        return float((problem.log_objective(start + length * direction) - problem.log_objective(start)).exp())

    log_unit = float(torch.logaddexp(log_negative, log_positive).amax())
    slope = float((((log_negative - log_unit).exp() - (log_positive - log_unit).exp()) * direction).sum()) / problem.p
    first_order = -(relative(1e-5) - relative(-1e-5)) / 2e-5
    length = float(_line_search(problem, start, direction, slope, log_unit)[0] / direction[0])
    assert 0 < length <= 1 and relative(length) <= 1 - 1e-5 * length * first_order, "the other wall is no success"
    assert length == 1 or relative(2 * length) > 1 - 1e-3 * 2 * length * first_order, "twice the way would have been too far"


@pytest.mark.parametrize("step", [-1.0, -100.0, 0.0, math.inf, math.nan])
def test_the_line_search_stays_where_nothing_lowers_the_objective(step: float) -> None:
    problem, start = ring([1.0, 3.0], 2.0), torch.tensor([0.1, 0.0], dtype=torch.float64)
    log_negative, log_positive = problem.log_sums(start)
    direction = torch.stack([(log_negative - log_positive).sign()[0] * step, start[1]])
    log_unit = float(torch.logaddexp(log_negative, log_positive).amax())
    for slope in (-1.0, 1.0):
        assert torch.equal(_line_search(problem, start, direction, slope, log_unit), start)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_as_many_cycles_come_before_newton_steps_as_are_allowed(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one alone where all channels are near."""
    asked = [0]

    def counted(*arguments: Any) -> torch.Tensor:
        asked[0] += 1
        return conjugate_gradients(*arguments)

    def steps(far: float) -> list[int]:
        """The numbers of Newton steps that each of the first iterations takes, where all gaps above `far` are far."""
        monkeypatch.setattr(newton, "_FAR", far)
        problem, taken = chain(6, 5, "heavy"), []
        cycle, scales = get_solver("newton"), torch.zeros(problem.held.numel(), dtype=torch.float64)
        for _ in range(most + 2):
            asked[0] = 0
            scales = cycle(problem, scales, *problem.log_sums(scales))
            taken.append(asked[0])
        return taken

    monkeypatch.setattr(newton, "conjugate_gradients", counted)
    monkeypatch.setattr(newton, "_MOST_CYCLES", most)
    assert steps(0.0) == [0] * most + [1, 1]
    assert steps(math.inf) == [0] + [1] * (most + 1)


def test_an_iteration_takes_no_more_products_than_are_allowed_far_away_and_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with few of them each it still lowers the objective, down to the optimum."""
    allowed = {True: 2, False: 4}
    asked = [0]

    class Counted:
        def __init__(self, operator: Any) -> None:
            self._operator = operator

        def product(self, vector: torch.Tensor) -> torch.Tensor:
            asked[0] += 1
            return self._operator.product(vector)

    monkeypatch.setattr(newton, "conjugate_gradients", lambda first, *others: conjugate_gradients(Counted(first), *others))
    monkeypatch.setattr(newton, "_MOST_PRODUCTS", allowed[False])
    monkeypatch.setattr(newton, "_MOST_PRODUCTS_FAR", allowed[True])
    problem, most = chain(30, 4, "heavy", bad_start=2.0), {True: 0, False: 0}
    cycle, scales, gap = get_solver("newton"), torch.zeros(problem.held.numel(), dtype=torch.float64), math.inf
    for _ in range(100):
        negative, positive = problem.log_sums(scales)
        gap = float(torch.where(problem.held, 0.0, negative - positive).abs().amax())
        if gap <= 1e-7:
            break
        asked[0], before = 0, problem.log_objective(scales)
        scales = cycle(problem, scales, negative, positive)
        assert problem.log_objective(scales) <= before + 1e-12
        most[gap > 1.0] = max(most[gap > 1.0], asked[0])
    assert gap <= 1e-7 and most == allowed


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("make", [lambda: chain(6, 5, bad_start=1.0), lambda: chain(6, 5, "heavy"), lambda: gated(2.0)])
def test_newton_gets_there_where_the_coarse_matrix_has_no_factors(
    make: Any, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coarse correction then moves nothing, and conjugate gradients have the diagonal alone in front."""
    problem = make()
    expected = solve(problem, tol=1e-8, max_iterations=30, solver="newton")
    asked = [0]

    def without_factors(*_: Any) -> None:
        asked[0] += 1

    monkeypatch.setattr("fxenorm.solve.coarse._MOST_DENSE", 1000 if dense else 0)
    monkeypatch.setattr(CoarseProblem if dense else SparseCoarseProblem, "_solver", without_factors)
    start = torch.zeros(problem.held.numel(), dtype=torch.float64)
    assert torch.equal(coarse_correction(problem, start, ~problem.held), start)
    solution = solve(problem, tol=1e-8, max_iterations=30, solver="newton")
    assert asked[0] and solution.converged
    torch.testing.assert_close(
        problem.log_objective(solution.log_scales), problem.log_objective(expected.log_scales), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["dense", "heavy"])
def test_newton_needs_few_iterations_where_limits_stop_many(kind: str, seed: int) -> None:
    """And none of them raises the objective or passes a limit."""
    problem, random = chain(16, 12, kind, bad_start=1.0, seed=seed), torch.Generator().manual_seed(seed)
    limit = torch.full((2, problem.held.numel()), 300.0, dtype=torch.float64)
    some = torch.rand(limit.shape, dtype=torch.float64, generator=random) < 0.4
    limit[some] = 0.3 * torch.rand(int(some.sum()), dtype=torch.float64, generator=random)
    problem = dataclasses.replace(problem, limit=limit)
    cycle, scales = get_solver("newton"), torch.zeros(problem.held.numel(), dtype=torch.float64)
    worst, objectives = math.inf, [float(problem.log_objective(scales))]
    while worst > 1e-6 and len(objectives) < 16:
        scales = cycle(problem, scales, *problem.log_sums(scales))
        assert (scales <= limit[0]).all() and (scales >= -limit[1]).all()
        objectives.append(float(problem.log_objective(scales)))
        negative, positive = problem.log_sums(scales)
        gap = torch.where(problem.held, 0.0, negative - positive)
        stopped = ((scales >= limit[0]) & (gap > 0)) | ((scales <= -limit[1]) & (gap < 0))
        worst = float(torch.where(stopped, 0.0, gap / 2).abs().amax())
    assert worst <= 1e-6 and stopped.sum() > 40
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(objectives))


@pytest.mark.parametrize("p", [12.0, 64.0])
def test_newton_needs_few_iterations_for_large_exponents_too(p: float) -> None:
    """Whose walls are steep: it comes down the slopes of smaller exponents first."""
    problem = chain(8, 10, "heavy", p=p)
    solution = solve(problem, tol=1e-6, max_iterations=16, solver="newton")
    assert solution.converged and solution.imbalance <= 1e-6 and solution.iterations <= (10 if p == 12.0 else 16)

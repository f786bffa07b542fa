"""What Newton's method is made of: one scalar a group, conjugate gradients, and few iterations also beside limits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from fxenorm.solve import get_solver
from fxenorm.solve.coarse import coarse_correction, coarse_problem
from fxenorm.solve.iterate import solve
from fxenorm.solve.jacobi import solvable
from fxenorm.solve.newton import conjugate_gradients

from ..solver_problems import by_definition, chain, gated


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

"""Every registered solver: it never raises the objective, they agree, and Newton's method gets there in a few iterations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fxenorm.errors import OptionError
from fxenorm.kernels.curvature import Curvature
from fxenorm.kernels.eager import EagerBackend
from fxenorm.kernels.program import build_program
from fxenorm.plan.attained import missing_equations
from fxenorm.plan.channels import ChannelFields
from fxenorm.plan.exponent_rows import exponent_rows
from fxenorm.plan.iterate import solve
from fxenorm.plan.problem import Problem
from fxenorm.solve import get_solver, register_solver, solver_names
from fxenorm.solve.coarse import coarse_correction, coarse_problem
from fxenorm.solve.jacobi import solvable
from fxenorm.solve.newton import conjugate_gradients

from .random_plans import Case, cases

BACKEND = EagerBackend()
SOLVERS = solver_names()


def problem_of(case: Case, groups: np.ndarray | None = None, held: np.ndarray | None = None) -> Problem:
    """A case, read once, with a cap on its log-scales."""
    program = case.program()
    mask = torch.zeros(case.num_scales, dtype=torch.bool) if held is None else torch.from_numpy(held)
    matrices = BACKEND.matrices(program, case.tensors, [None] * len(case.tensors))
    limit = torch.full((case.num_scales,), 300.0, dtype=torch.float64)
    return Problem(BACKEND, program, matrices, mask, limit, None if groups is None else torch.from_numpy(groups))


def chain(depth: int, width: int, kind: str = "dense", p: float = 2.0, bad_start: float = 0.0, seed: int = 0) -> Problem:
    """A fully connected chain; what has no finite optimum is held."""
    random = np.random.default_rng(seed)
    shapes, terms, tensors = [], [], []
    for layer in range(depth):
        out, into = (width if layer < depth - 1 else 7), (width if layer else 9)
        weight = random.normal(size=(out, into))
        if kind == "heavy":
            weight = random.standard_t(1.5, size=(out, into)) * np.exp(2 * random.normal(size=(out, into)))
        if kind == "sparse":
            weight *= random.random((out, into)) < 0.03
        weight *= np.exp(random.normal() + bad_start * random.normal(size=(out, 1)))
        ids = np.arange(layer * width, (layer + 1) * width)
        shapes.append((out, into))
        terms.append(
            [*([(1, ids[:, None])] if layer < depth - 1 else []), *([(-1, ids[None, :] - width)] if layer else [])],
        )
        tensors.append(torch.from_numpy(weight))
    count = (depth - 1) * width
    case = Case(count, p, shapes, terms, [0.0] * depth, tensors)
    problem = problem_of(case, np.repeat(np.arange(depth - 1), width))
    dead = ~solvable(*problem.log_sums()).numpy()
    rows = exponent_rows(problem.program, problem.matrices).matrix(dead)
    for form, _ in missing_equations(rows, dead, ChannelFields((), problem.program, None, dead)):
        ((variable, _),) = form
        dead[variable] = True
    return dataclasses.replace(problem, held=torch.from_numpy(dead))


def gated(p: float) -> Problem:
    """Layers with a shared stream, a weight that both reads and writes it, three variables an entry, and exponents of 2."""
    random, width = np.random.default_rng(3), 4
    stream, inner, gate = (np.arange(start, start + width) for start in (0, width, 2 * width))
    terms: list[list[tuple[int, np.ndarray]]] = [
        [(1, stream[:, None])],
        [(1, inner[:, None]), (-1, stream[None, :])],
        [(1, gate[:, None]), (-1, stream[None, :])],
        [(1, stream[:, None]), (-2, inner[None, :]), (-1, gate[None, :])],
        [(1, stream[:, None]), (-1, stream[None, :])],
        [(-1, stream[None, :])],
    ]
    tensors = [torch.from_numpy(random.normal(size=(width, width)) * np.exp(random.normal())) for _ in terms]
    weights = [0.0, 0.5, -0.5, 0.0, 1.0, 0.0]
    case = Case(3 * width, p, [(width, width)] * len(terms), terms, weights, tensors)
    return problem_of(case, np.repeat(np.arange(3), width))


def ring(weights: list[float], p: float) -> Problem:
    """Scalar layers in a loop: layer i reads variable i and writes variable i + 1."""
    count = len(weights)
    ids = [np.array([[k]]) for k in range(count)]
    terms = [[(1, ids[(k + 1) % count]), (-1, ids[k])] for k in range(count)]
    tensors = [torch.full((1, 1), weight, dtype=torch.float64) for weight in weights]
    return problem_of(Case(count, p, [(1, 1)] * count, terms, [0.0] * count, tensors))


def by_definition(problem: Problem, log_scales: torch.Tensor, matrices: Any = None) -> torch.Tensor:
    """F, entry by entry, for autograd."""
    padded = torch.nn.functional.pad(log_scales, (0, 1))
    total = log_scales.new_zeros(())
    for block, matrix, log_weight in zip(problem.program.blocks, problem.matrices, problem.program.log_weights, strict=True):
        power = matrix if problem.p <= 8 else matrix.exp()
        exponent = sum((c * padded[ids] for c, ids in block.terms), torch.zeros(()))
        total = total + log_weight.exp() * (power * (problem.p * exponent).exp()).sum()
    return total


@settings(deadline=None, max_examples=80)
@given(case=cases(infinite=False, offsets=True), seed=st.integers(0, 2**31))
def test_products_are_those_of_the_hessian(case: Case, seed: int) -> None:
    """Against autograd on the definition: several variables an entry, collisions, zeros, exponents up to 2."""
    problem, random = problem_of(case), torch.Generator().manual_seed(seed)
    scales, vector = (0.3 * torch.randn(case.num_scales, dtype=torch.float64, generator=random) for _ in range(2))
    log_negative, log_positive = problem.log_sums(scales)
    free = solvable(log_negative, log_positive)
    assume(free.any())
    log_diagonal = torch.where(free, torch.logaddexp(log_negative, log_positive), 0.0)
    vector = torch.where(free, vector, 0.0)
    _, expected = torch.autograd.functional.hvp(lambda s: by_definition(problem, s), scales, vector)
    operator = problem.curvature(scales, log_diagonal, free)
    assert isinstance(operator, Curvature)
    unit = case.p**2 * log_diagonal.exp()
    torch.testing.assert_close(operator.product(vector)[free], (expected / unit)[free], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_many_small_layers_taken_as_few_large_ones_are_the_same_objective(p: float) -> None:
    """Only those are taken together that have the same exponents, layer weight and offset."""
    random, count, kinds = np.random.default_rng(0), 30, [(1, 0.0, 0.0), (1, 0.7, 0.0), (2, 0.0, 0.0), (1, 0.0, 1.0)]
    terms: list[list[tuple[int, np.ndarray]]] = []
    weights, offsets = [], []
    for number in range(36):
        power, log_weight, offset = kinds[number % 4]
        rows, columns = random.permutation(count)[:3], random.permutation(count)[:4]
        columns = np.where(np.isin(columns, rows), -1, columns)
        terms.append([(power, rows[:, None]), (-1, columns[None, :])])
        weights.append(log_weight)
        offsets.append(offset)
    tensors = [torch.from_numpy(random.normal(size=(3, 4))) for _ in terms]
    problem = problem_of(Case(count, p, [(3, 4)] * 36, terms, weights, tensors, offsets))
    few = problem.stacked()
    assert len(few.program.blocks) == 4
    scales = torch.from_numpy(random.normal(size=count))
    for where in (None, scales):
        torch.testing.assert_close(few.log_objective(where), problem.log_objective(where), rtol=1e-12, atol=1e-12)
        for one, other in zip(few.log_sums(where), problem.log_sums(where), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    free = solvable(*problem.log_sums(scales))
    diagonal = torch.where(free, torch.logaddexp(*problem.log_sums(scales)), 0.0)
    vector = torch.from_numpy(random.normal(size=count))
    one, other = (item.curvature(scales, diagonal, free).product(vector) for item in (few, problem))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(case=cases(infinite=False, offsets=True), seed=st.integers(0, 2**31), data=st.data())
def test_one_scalar_a_group_is_the_same_objective(case: Case, seed: int, data: st.DataObject) -> None:
    problem, random = problem_of(case), torch.Generator().manual_seed(seed)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=case.num_scales, max_size=case.num_scales)))
    scales = torch.randn(case.num_scales, dtype=torch.float64, generator=random)
    scalars = torch.randn(2, dtype=torch.float64, generator=random)
    logs, exponents = problem.aggregate(scales, labels, 2)
    change = torch.nn.functional.pad(scalars, (0, 1))
    expected = problem.log_objective(scales + change[labels])
    assume(expected.isfinite())
    shifts = torch.zeros_like(logs).index_add_(0, exponents[0], exponents[2] * change[exponents[1]])
    torch.testing.assert_close((logs + case.p * shifts).logsumexp(0), expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(case=cases(), data=st.data())
@pytest.mark.parametrize("name", SOLVERS)
def test_no_cycle_ever_raises_the_objective(name: str, case: Case, data: st.DataObject) -> None:
    """Random integer systems, several variables a weight, exponents up to 2, some of them held."""
    assume(name != "newton" or math.isfinite(case.p))
    flags = st.lists(st.booleans(), min_size=case.num_scales, max_size=case.num_scales)
    held = np.array(data.draw(flags))
    problem = problem_of(case, np.array(data.draw(flags), dtype=np.int64), held)
    cycle, total = get_solver(name), torch.zeros(case.num_scales, dtype=torch.float64)
    last = float(problem.log_objective(total))
    for _ in range(6):
        log_negative, log_positive = problem.log_sums(total)
        if not solvable(log_negative, log_positive, problem.held).any():
            break
        total = cycle(problem, total, log_negative, log_positive)
        now = float(problem.log_objective(total))
        assert total.isfinite().all() and not total[problem.held].any()
        assert now <= last + 1e-9 * (1 + abs(last)) or last == -math.inf
        last = now


@settings(deadline=None, max_examples=25)
@given(case=cases(), data=st.data())
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_stay_within_their_limits_and_are_balanced_inside(name: str, case: Case, data: st.DataObject) -> None:
    """Limits of a variable's own for each of the two ways; what the limit stops is said, and only that."""
    assume(name != "newton" or math.isfinite(case.p))
    draw = st.lists(st.sampled_from([0.0, 0.1, 0.7, 3.0, math.inf]), min_size=case.num_scales, max_size=case.num_scales)
    limit = torch.tensor([data.draw(draw), data.draw(draw)], dtype=torch.float64).clamp(max=300.0)
    flags = st.lists(st.booleans(), min_size=case.num_scales, max_size=case.num_scales)
    problem = problem_of(
        case, np.array(data.draw(flags), dtype=np.int64), np.array(data.draw(flags)) & np.array(data.draw(flags))
    )
    problem = dataclasses.replace(problem, limit=limit)
    before = float(problem.log_objective())
    solution = solve(problem, tol=1e-6, max_iterations=60, solver=name)
    scales = solution.log_scales
    assert (scales <= limit[0] + 1e-12).all() and (scales >= -limit[1] - 1e-12).all() and not scales[problem.held].any()
    assert float(problem.log_objective(scales)) <= before + 1e-9 * (1 + abs(before)) or before == -math.inf
    sums = problem.log_sums(scales)
    gap = torch.where(solvable(*sums, problem.held), sums[0] - sums[1], 0.0)
    stopped = ((scales >= limit[0]) & (gap > 0)) | ((scales <= -limit[1]) & (gap < 0))
    assert torch.equal(solution.at_limit, stopped)
    imbalance = gap.abs() / (1.0 if math.isinf(case.p) else case.p)
    assert solution.imbalance == pytest.approx(float(imbalance.amax()), abs=1e-12)
    assert solution.converged == (float(imbalance.amax()) <= 1e-6)
    if solution.iterations < 60 and scales.abs().max() < 200:
        assert float(torch.where(stopped, 0.0, imbalance).amax()) <= 1e-6


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


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize(
    "make", [lambda p: chain(5, 8, p=p), lambda p: chain(4, 12, "heavy", p=p), gated], ids=["dense", "heavy", "gated"]
)
def test_all_solvers_agree(make: Any, p: float) -> None:
    problem = make(p)
    solutions = {}
    for name in SOLVERS:
        solution = solve(problem, tol=1e-9, max_iterations=20_000, solver=name)
        assert solution.converged, f"{name}: {solution.imbalance}"
        solutions[name] = solution.log_scales
    for name, scales in solutions.items():
        torch.testing.assert_close(scales, solutions["newton"], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("bad_start", [0.0, 3.0])
@pytest.mark.parametrize("kind", ["dense", "heavy", "sparse"])
@pytest.mark.parametrize("depth", [4, 16, 64, 256])
def test_newton_needs_few_iterations_at_any_depth(depth: int, kind: str, bad_start: float) -> None:
    problem = chain(depth, 64 if kind == "sparse" else 12, kind, bad_start=bad_start)
    assert not problem.held.all()
    solution = solve(problem, tol=1e-6, max_iterations=30, solver="newton")
    assert solution.converged and solution.imbalance <= 1e-6
    assert not solution.log_scales[problem.held].any()
    # The gradient by definition, relative to the sums that it is the difference of, and to the objective.
    scales = solution.log_scales.clone().requires_grad_(True)
    objective = by_definition(problem, scales)
    objective.backward()
    assert scales.grad is not None
    assert scales.grad[~problem.held].abs().max() <= 1e-6 * problem.p * float(objective.detach())


@pytest.mark.parametrize("p", [12.0, 64.0])
def test_newton_needs_few_iterations_for_large_exponents_too(p: float) -> None:
    """Whose walls are steep: it comes down the slopes of smaller exponents first."""
    problem = chain(8, 10, "heavy", p=p)
    solution = solve(problem, tol=1e-6, max_iterations=16, solver="newton")
    assert solution.converged and solution.imbalance <= 1e-6 and solution.iterations <= (10 if p == 12.0 else 16)


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


@pytest.mark.parametrize(
    "make", [lambda: chain(8, 10), lambda: chain(6, 10, "heavy"), lambda: chain(6, 40, "sparse"), lambda: gated(2.0)]
)
def test_no_higher_than_lbfgs(make: Any) -> None:
    """scipy's L-BFGS on log F in float64, from the same start."""
    from scipy.optimize import minimize

    problem = make()
    free = ~problem.held

    def value_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        scales = torch.zeros(problem.held.numel(), dtype=torch.float64)
        scales[free] = torch.from_numpy(values)
        scales.requires_grad_(True)
        value = by_definition(problem, scales).log()
        value.backward()
        assert scales.grad is not None
        return float(value.detach()), scales.grad[free].numpy()

    options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-10}
    other = minimize(value_and_gradient, np.zeros(int(free.sum())), jac=True, method="L-BFGS-B", options=options)
    solution = solve(problem, tol=1e-8, max_iterations=30, solver="newton")
    assert solution.converged and float(problem.log_objective(solution.log_scales)) <= other.fun + 1e-12


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0, 12.0])
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("count", [2, 3, 6])
def test_loops_on_which_plain_jacobi_rings(count: int, name: str, p: float) -> None:
    problem = ring([float(3**k) for k in range(count)], p)
    solution = solve(problem, tol=1e-8, max_iterations=3000, solver=name)
    assert solution.converged and problem.imbalance(solution.log_scales) <= 1e-8


def test_infinite_p_equalises_ranges_and_large_p_comes_close() -> None:
    """Largest |in| and |out| of every channel, and the largest weight of all."""
    infinite = chain(4, 8, p=math.inf)
    for name in ("jacobi", "gauss-seidel"):
        solution = solve(infinite, tol=1e-6, max_iterations=2000, solver=name)
        assert solution.converged
        log_negative, log_positive = infinite.log_sums(solution.log_scales)
        torch.testing.assert_close(log_negative, log_positive, rtol=0, atol=1e-6)
    large = chain(4, 8, p=64.0)
    scales = solve(large, tol=1e-6, max_iterations=60, solver="newton").log_scales
    # |.|_inf <= |.|_p <= n^(1/p) |.|_inf: what p = 64 leaves of the largest weight is within that factor of the least.
    most = sum(matrix.numel() for matrix in large.matrices)
    assert float(infinite.log_objective(scales)) <= float(infinite.log_objective(solution.log_scales)) + math.log(most) / 64
    log_negative, log_positive = infinite.log_sums(scales)
    assert (log_negative - log_positive).abs().max() <= 2 * math.log(8) / 64 + 1e-6


def test_held_variables_stay_and_their_weights_count() -> None:
    problem = chain(4, 6)
    held = torch.zeros_like(problem.held)
    held[6:12] = True
    part = dataclasses.replace(problem, held=held)
    for name in SOLVERS:
        solution = solve(part, tol=1e-8, max_iterations=5000, solver=name)
        assert solution.converged and not solution.log_scales[held].any() and solution.log_scales[~held].all()
        log_negative, log_positive = problem.log_sums(solution.log_scales)
        torch.testing.assert_close(log_negative[~held], log_positive[~held], rtol=0, atol=1e-6)


def test_single_precision_weights_keep_matrices_no_larger_than_themselves() -> None:
    """Sums, energies and products come from |w| in float32 as they would from powers in float64."""
    random = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(90, 70), (80, 90), (20, 80, 3, 3)]
    weights = [torch.randn(shape, generator=random) for shape in shapes]
    first, second = np.arange(90), np.arange(90, 170)
    terms = [[(1, first[:, None])], [(1, second[:, None]), (-1, first[None, :])], [(-1, second[None, :, None, None])]]
    for p in (1.0, 2.0, 3.0, 12.0):
        problems = []
        for kind in (torch.float32, torch.float64):
            program = build_program([(tuple(w.shape), t, 0.0) for w, t in zip(weights, terms, strict=True)], 170, p)
            matrices = BACKEND.matrices(program, [weight.to(kind) for weight in weights], [None] * 3)
            if kind == torch.float32:
                assert sum(m.numel() * m.element_size() for m in matrices) <= sum(4 * w.numel() for w in weights)
            limit = torch.full((170,), math.inf, dtype=torch.float64)
            problems.append(Problem(BACKEND, program, matrices, torch.zeros(170, dtype=torch.bool), limit))
        narrow, wide = problems
        assert narrow.matrices[1].dtype == torch.float32 and wide.matrices[1].dtype == torch.float64
        scales = torch.randn(170, dtype=torch.float64, generator=random)
        for where in (None, scales):
            for one, other in zip(narrow.log_sums(where), wide.log_sums(where), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(narrow.log_objective(where), wide.log_objective(where), rtol=1e-12, atol=1e-12)
        tight = [solve(problem, tol=1e-9, max_iterations=30, solver="newton") for problem in problems]
        assert tight[0].converged
        torch.testing.assert_close(tight[0].log_scales, tight[1].log_scales, rtol=0, atol=1e-9)


def test_names_are_checked() -> None:
    assert {"jacobi", "gauss-seidel", "newton"} <= set(SOLVERS)
    with pytest.raises(OptionError, match="newton"):
        get_solver("simplex")
    with pytest.raises(OptionError, match="already"):
        register_solver("newton", get_solver)  # type: ignore[arg-type]

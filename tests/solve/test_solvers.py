"""Every registered solver: it never raises the objective, they agree, and Newton's method gets there in a few iterations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fxenorm.analysis.options import Options
from fxenorm.errors import OptionError
from fxenorm.kernels.program import build_program
from fxenorm.kernels.reference.curvature import Curvature
from fxenorm.solve import SOLVER_NAMES, fastest_solver, get_solver, register_solver, solver_names
from fxenorm.solve.iterate import move, solve
from fxenorm.solve.jacobi import jacobi_step, solvable
from fxenorm.solve.registry import Solver
from fxenorm.weights.objective import CurrentObjective

from ..coarse_cycles import TEST_SOLVERS
from ..random_plans import Case, cases
from ..solver_problems import BACKEND, by_definition, chain, gated, problem_of, ring

SOLVERS = (*SOLVER_NAMES, *TEST_SOLVERS)
JACOBI_STEPS = {"the formula": 1.0, "half of the formula": 0.5}
"""By name, the share of the formula's step that is taken."""


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


def jacobi_cycle(case: Case, share: float, data: st.DataObject) -> Any:
    """A share of the formula's step, within a limit of its own, for some variables in powers of two."""
    limit = data.draw(st.sampled_from([math.inf, 0.3]))
    masked = torch.tensor(data.draw(st.lists(st.booleans(), min_size=case.num_scales, max_size=case.num_scales)))
    bound = torch.full((case.num_scales,), limit, dtype=torch.float64)

    def cycle(problem: CurrentObjective, total: torch.Tensor, *log_sums: torch.Tensor) -> torch.Tensor:
        step = jacobi_step(*log_sums, problem.degree, case.p, problem.held, bound)
        assert step.isfinite().all() and (step.abs() <= limit).all() and not step[problem.held].any()
        return move(problem, total, share * step, masked if masked.any() else None)

    return cycle


@settings(deadline=None, max_examples=50)
@given(case=cases(), data=st.data())
@pytest.mark.parametrize("name", [*SOLVERS, *JACOBI_STEPS])
def test_no_cycle_ever_raises_the_objective(name: str, case: Case, data: st.DataObject) -> None:
    """Random integer systems, several variables a weight, exponents up to 2, some of them held."""
    assume(name in JACOBI_STEPS or name in solver_names(case.p))
    flags = st.lists(st.booleans(), min_size=case.num_scales, max_size=case.num_scales)
    held = np.array(data.draw(flags))
    problem = problem_of(case, np.array(data.draw(flags), dtype=np.int64), held)
    cycle = jacobi_cycle(case, JACOBI_STEPS[name], data) if name in JACOBI_STEPS else get_solver(name)
    total = torch.zeros(case.num_scales, dtype=torch.float64)
    last = float(problem.log_objective(total))
    for _ in range(8):
        log_negative, log_positive = problem.log_sums(total)
        if name in SOLVERS and not solvable(log_negative, log_positive, problem.held).any():
            break
        total = cycle(problem, total, log_negative, log_positive)
        now = float(problem.log_objective(total))
        assert total.isfinite().all() and not total[problem.held].any()
        assert now <= last + 1e-9 * (1 + abs(last)) or last == -math.inf
        last = now
    if name in JACOBI_STEPS or total.abs().amax() < 8:  # within what the definition can be written down for, in plain numbers
        oracle = case.oracle(total.numpy())
        if 0 < oracle.objective < math.inf:
            assert last == pytest.approx(math.log(oracle.objective), abs=1e-8)


@settings(deadline=None, max_examples=25)
@given(case=cases(), data=st.data())
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_stay_within_their_limits_and_are_balanced_inside(name: str, case: Case, data: st.DataObject) -> None:
    """Limits of a variable's own for each of the two ways; what the limit stops is said, and only that."""
    assume(name in solver_names(case.p))
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


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0, 12.0, math.inf])
@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_loops_on_which_plain_jacobi_rings(count: int, p: float) -> None:
    """Plain Jacobi swaps the two sides of a loop of even length for ever."""
    problem = ring([float(3**k) for k in range(count)], p)
    if count == 2:
        before, total = problem.imbalance(), torch.zeros(count, dtype=torch.float64)
        for _ in range(20):
            total += jacobi_step(*problem.log_sums(total), problem.degree, p)
        assert problem.imbalance(total) == pytest.approx(before), "control: this one rings"
    for name in set(SOLVERS) & set(solver_names(p)):
        solution = solve(problem, tol=1e-8, max_iterations=3000, solver=name)
        assert solution.converged and problem.imbalance(solution.log_scales) <= 1e-8, name


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
            problems.append(CurrentObjective(BACKEND, program, matrices, torch.zeros(170, dtype=torch.bool), limit))
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
    with pytest.raises(OptionError, match="newton"):
        get_solver("simplex")
    with pytest.raises(OptionError, match="already"):
        register_solver("newton", Solver(lambda: get_solver("newton")))


def test_a_solver_gives_way_only_where_that_is_asked_for() -> None:
    kept = get_solver("coarse-jacobi")
    with pytest.raises(OptionError, match="already"):
        register_solver("coarse-jacobi", Solver(lambda: get_solver("newton"), derivatives=True))
    assert type(get_solver("coarse-jacobi")) is type(kept)
    register_solver("coarse-jacobi", Solver(lambda: get_solver("newton"), derivatives=True), replace=True)
    try:
        assert type(get_solver("coarse-jacobi")) is type(get_solver("newton"))
        assert "coarse-jacobi" in solver_names(2.0) and "coarse-jacobi" not in solver_names(math.inf)
    finally:
        register_solver("coarse-jacobi", TEST_SOLVERS["coarse-jacobi"], replace=True)


def test_whoever_is_registered_can_be_chosen() -> None:
    """By every name that `analyze` takes, and by no other; "auto" is one of them."""
    assert set(SOLVER_NAMES) == set(solver_names()) - set(TEST_SOLVERS)
    for name in SOLVER_NAMES:
        assert Options(solver=name).solver == name
    for p in (0.5, 2.0, 1000.0):
        assert fastest_solver(p) == "newton"
    assert fastest_solver(math.inf) == "max-balance" and "newton" not in solver_names(math.inf)
    assert "max-balance" not in solver_names(2.0), "it looks at the largest entries alone"
    with pytest.raises(OptionError, match="'auto', 'jacobi', 'gauss-seidel', 'newton'"):
        Options(solver="coarse-jacobi")

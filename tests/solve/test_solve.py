"""The Jacobi cycle on random objectives: it stops where they are least, and in powers of two no higher than it began."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fxenorm.analysis.attained.channel_fields import ChannelFields
from fxenorm.analysis.attained.exponent_rows import exponent_rows
from fxenorm.analysis.attained.missing_equations import missing_equations
from fxenorm.kernels.factors import log2_factors
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.solve import SOLVER_NAMES
from fxenorm.solve.iterate import move, round_limit, solve, solve_rounded
from fxenorm.solve.jacobi import imbalance, jacobi_step, round_to_powers_of_two, truncate_to_powers_of_two
from fxenorm.weights.objective import CurrentObjective

from ..coarse_cycles import TEST_SOLVERS
from ..random_plans import Case, cases

BACKEND = EagerBackend()


def problem(case: Case, held: list[int] | None = None, limit: float = math.inf) -> CurrentObjective:
    """A case, read once."""
    program = case.program()
    mask = torch.zeros(case.num_scales, dtype=torch.bool)
    mask[held or []] = True
    matrices = BACKEND.matrices(program, case.tensors, [None] * len(case.tensors))
    return CurrentObjective(BACKEND, program, matrices, mask, torch.full((case.num_scales,), limit, dtype=torch.float64))


def ring(weights: list[float], p: float = 2.0) -> Case:
    """Scalar layers in a loop: layer i reads variable i and writes variable i + 1."""
    count = len(weights)
    ids = [np.array([[k]]) for k in range(count)]
    terms = [[(1, ids[(k + 1) % count]), (-1, ids[k])] for k in range(count)]
    tensors = [torch.full((1, 1), weight, dtype=torch.float64) for weight in weights]
    return Case(count, p, [(1, 1)] * count, terms, [0.0] * count, tensors)


@settings(deadline=None, max_examples=60)
@given(case=cases(infinite=False))
def test_solution_is_a_stationary_point(case: Case) -> None:
    """The gradient of F, by autograd on the definition, vanishes in every variable that is not held."""
    given_problem = problem(case)
    solution = solve(given_problem, tol=1e-9, max_iterations=2000)
    assume(solution.converged and solution.log_scales.abs().max() < 8)
    scales = solution.log_scales.clone().requires_grad_(True)
    padded = torch.cat([scales, scales.new_zeros(1)])
    objective = torch.zeros((), dtype=torch.float64)
    for tensor, terms, log_weight in zip(case.tensors, case.terms, case.log_weights, strict=True):
        exponent = sum((c * padded[torch.from_numpy(ids)] for c, ids in terms), torch.zeros(tensor.shape, dtype=torch.float64))
        objective = objective + math.exp(log_weight) * (tensor.abs() ** case.p * (case.p * exponent).exp()).sum()
    objective.backward()
    sums = case.oracle(np.zeros(case.num_scales))
    free = torch.from_numpy((sums.negative > 0) & (sums.positive > 0))
    assert scales.grad is not None
    assert (scales.grad[free].abs() <= 1e-6 * float(objective.detach()) * case.p).all()
    assert not solution.log_scales[~free].any()
    # and it is idempotent
    again = solve(given_problem, tol=1e-9, max_iterations=10, start=solution.log_scales)
    assert again.iterations == 0 and torch.equal(again.log_scales, solution.log_scales)


def one_variable(exponents: list[int], masses: list[float], p: float) -> Case:
    """Scalar weights |w|^p = mass with exponents of one variable."""
    terms = [[(exponent, np.array([[0]]))] for exponent in exponents]
    tensors = [torch.full((1, 1), mass ** (1 / p), dtype=torch.float64) for mass in masses]
    return Case(1, p, [(1, 1)] * len(masses), terms, [0.0] * len(masses), tensors)


def test_a_variable_of_exponent_two_reaches_its_optimum_in_one_cycle() -> None:
    given_problem = problem(one_variable([2, -2, 1], [100.0, 1.0, 1e-3], 1.0))
    for solver in ("jacobi", "gauss-seidel"):
        solution = solve(given_problem, tol=1e-4, max_iterations=1, solver=solver)
        assert solution.converged and solution.iterations == 1
        assert float(given_problem.log_objective(solution.log_scales).exp()) == pytest.approx(20.0003, abs=5e-5)


@pytest.mark.parametrize("solver", [*SOLVER_NAMES, *TEST_SOLVERS])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("exponents", [(2, -1), (1, -2), (2, -2, -1), (1, 2, -3), (-2, 2, 1, -1)])
def test_every_solver_finds_the_minimum_whatever_the_exponents(exponents: tuple[int, ...], p: float, solver: str) -> None:
    """F of one variable by definition, in plain numbers."""
    masses = [3.0, 50.0, 0.7, 11.0][: len(exponents)]
    given_problem = problem(one_variable(list(exponents), masses, p))
    solution = solve(given_problem, tol=1e-9, max_iterations=200, solver=solver)
    assert solution.converged
    (found,) = solution.log_scales.tolist()

    def slope(s: float) -> float:
        """Of F, over p."""
        return sum(exponent * mass * math.exp(p * exponent * s) for exponent, mass in zip(exponents, masses, strict=True))

    assert slope(found - 1e-6) < 0 < slope(found + 1e-6)


@given(
    entries=st.lists(st.tuples(st.integers(-4, 4).filter(bool), st.floats(1e-3, 1e3)), min_size=1, max_size=6),
    p=st.sampled_from([1.0, 2.0, 3.0]),
)
def test_one_variable_never_passes_its_optimum(entries: list[tuple[int, float]], p: float) -> None:
    """Whatever integers its exponents are: log(N / P) keeps its sign from cycle to cycle, so nothing rings."""
    exponents, masses = map(list, zip(*entries, strict=True))
    given_problem = problem(one_variable(exponents, masses, p))
    assume(min(exponents) < 0 < max(exponents))
    total = torch.zeros(1, dtype=torch.float64)
    side = None
    for _ in range(10):
        sums = given_problem.log_sums(total)
        gap = float(sums[0] - sums[1])
        if abs(gap) < 1e-9:
            break
        side = gap > 0 if side is None else side
        assert (gap > 0) == side
        total = total + jacobi_step(*sums, given_problem.degree, p)


def test_one_cycle_is_the_formula() -> None:
    four, one = torch.tensor([math.log(4.0)] * 2), torch.zeros(2)
    degree = torch.tensor([2.0, 4.0])
    assert jacobi_step(four, one, degree, 2.0).exp().tolist() == pytest.approx([2**0.5, 2**0.25])
    assert jacobi_step(four, one, degree, math.inf).exp().tolist() == pytest.approx([2.0, 2**0.5])
    assert float(imbalance(four, one, 2.0)) == pytest.approx(math.log(2.0))
    assert float(imbalance(four, one, math.inf)) == pytest.approx(math.log(4.0))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays(bad: float) -> None:
    values, degree = torch.tensor([bad, 0.0]), torch.full((2,), 2.0)
    for sums in ((values, torch.ones(2)), (torch.ones(2), values)):
        assert jacobi_step(*sums, degree, 2.0)[0] == 0.0
        assert float(imbalance(*sums, 2.0)) == pytest.approx(0.5)
    assert float(imbalance(torch.zeros(0), torch.zeros(0), 2.0)) == 0.0


def test_rounding_to_powers_of_two() -> None:
    octaves = torch.tensor([0.0, 0.49, 0.5, -0.5, 1.49, -1.51, 7.0], dtype=torch.float64)
    everywhere = torch.ones(7, dtype=torch.bool)
    rounded = round_to_powers_of_two(octaves * math.log(2.0), everywhere) / math.log(2.0)
    torch.testing.assert_close(rounded, torch.tensor([0.0, 0, 1, -1, 1, -2, 7], dtype=torch.float64))
    assert torch.equal(round_to_powers_of_two(octaves, ~everywhere), octaves)
    cut = truncate_to_powers_of_two(octaves * math.log(2.0), everywhere) / math.log(2.0)
    torch.testing.assert_close(cut, torch.tensor([0.0, 0, 0, 0, 1, -1, 7], dtype=torch.float64))
    limits = round_limit(torch.tensor([1.0, math.log(4.0), math.inf, 1.0]), torch.tensor([True, True, True, False]))
    assert limits.tolist() == pytest.approx([math.log(2.0), math.log(4.0), math.inf, 1.0])


@settings(deadline=None, max_examples=40)
@given(case=cases(infinite=False), data=st.data())
def test_rounded_solution_moves_by_powers_of_two_and_does_not_raise_the_objective(case: Case, data: st.DataObject) -> None:
    """Within the limit, which need not be a whole number of octaves; what converged and what the limit stopped is as before."""
    ends = st.lists(st.sampled_from([0.5, 0.8, 1.2, 3.0]), min_size=case.num_scales, max_size=case.num_scales)
    limit = torch.tensor([data.draw(ends), data.draw(ends)], dtype=torch.float64)
    given_problem = replace(problem(case), limit=limit)
    everywhere = torch.ones(case.num_scales, dtype=torch.bool)
    solution = solve_rounded(given_problem, everywhere, tol=1e-6, max_iterations=300)
    octaves = solution.log_scales / math.log(2.0)
    torch.testing.assert_close(octaves, octaves.round(), atol=1e-9, rtol=0)
    assert (solution.log_scales <= limit[0]).all() and (solution.log_scales >= -limit[1]).all()
    plain = solve(given_problem, tol=1e-6, max_iterations=300)
    assert solution.converged == plain.converged and torch.equal(solution.at_limit, plain.at_limit)
    assert solution.iterations >= plain.iterations
    before, after = float(given_problem.log_objective()), float(given_problem.log_objective(solution.log_scales))
    assert after <= before + 1e-9 * (1 + abs(before)) or before == -math.inf


@pytest.mark.parametrize(("p", "ratio"), [(1.0, 2.0), (2.0, 4.0), (3.0, 8.0), (math.inf, 2.0)])
@pytest.mark.parametrize("up", [False, True])
def test_powers_of_two_stay_where_a_step_would_only_swap_the_sides(p: float, ratio: float, up: bool) -> None:
    """With N = 2^p P (p = 2: N = 4 P) half an octave is asked for: a whole one swaps N and P, and the next swaps them back."""
    sides = [1.0, ratio] if math.isinf(p) else [1.0, ratio ** (1 / p)]
    ids = np.array([[0]])
    tensors = [torch.full((1, 1), side, dtype=torch.float64) for side in (sides if up else sides[::-1])]
    given_problem = problem(Case(1, p, [(1, 1)] * 2, [[(1, ids)], [(-1, ids)]], [0.0] * 2, tensors))
    step = jacobi_step(*given_problem.log_sums(), given_problem.degree, p)
    assert abs(float(step)) == pytest.approx(0.5 * math.log(2.0)), "half an octave"
    everywhere = torch.ones(1, dtype=torch.bool)
    assert move(given_problem, torch.zeros(1, dtype=torch.float64), step, everywhere).tolist() == [0.0]
    further = move(given_problem, torch.zeros(1, dtype=torch.float64), 1.01 * step, everywhere)
    assert math.isinf(p) == (further.tolist() != [0.0])


def test_limit_is_reported() -> None:
    case = ring([1.0, 100.0])
    ids = np.array([[0]])
    case.shapes, case.terms = [(1, 1), (1, 1)], [[(1, ids)], [(-1, ids)]]
    case.num_scales = 1
    solution = solve(problem(case, limit=0.5), tol=1e-9, max_iterations=100)
    assert not solution.converged and solution.at_limit.tolist() == [True] and solution.iterations <= 2
    assert solution.log_scales.tolist() == [0.5]
    assert solve(problem(case), tol=1e-9, max_iterations=100).converged


def scalars(count: int, *weights: tuple[int, int, float]) -> Case:
    """Scalar weights (variable written, variable read, value), -1 = fixed."""
    terms = [[(1, np.array([[out]])), (-1, np.array([[into]]))] for out, into, _ in weights]
    tensors = [torch.full((1, 1), value, dtype=torch.float64) for *_, value in weights]
    return Case(count, 2.0, [(1, 1)] * len(weights), terms, [0.0] * len(weights), tensors)


def held_for_a_minimum(case: Case, already: list[int] | None = None) -> list[int]:
    """The variables to hold at the case's weights, beside some that are."""
    given_problem = problem(case, already)
    fixed = given_problem.held.numpy()
    fields = [((1, np.array([variable])),) for variable in range(case.num_scales)]
    channels = ChannelFields(fields, given_problem.program, None, fixed)
    rows = exponent_rows(given_problem.program, given_problem.matrices).matrix(fixed)
    forms = [form for form, _ in missing_equations(rows, fixed, channels)]
    assert all(len(form) == 1 for form in forms)
    return sorted(form[0][0] for form in forms)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([(0, -1, 1.0), (1, 0, 1.0), (-1, 1, 1.0)], []),
        ([(0, -1, 1.0), (1, 0, 1.0), (0, 1, 1.0)], [1]),  # a loop that nothing leaves: one of its channels is enough
        ([(0, -1, 1.0), (1, 0, 1.0), (0, 1, 1.0), (-1, 1, 0.0)], [1]),  # a zero is no way out
        ([(0, -1, 1.0), (1, 0, 1.0), (0, 1, 1.0), (-1, 1, 0.5)], []),
        ([(0, 1, 1.0), (1, 0, 1.0), (-1, 0, 1.0)], [1]),  # nothing enters
        ([(0, -1, 1.0), (1, 0, 1.0)], [1]),  # with the last held, the other lies between two fixed ends
        ([(0, 1, 1.0), (1, 0, 1.0)], []),  # a loop by itself: it has a minimum, and a direction that changes nothing
    ],
)
def test_variables_without_a_finite_optimum(weights: list[tuple[int, int, float]], expected: list[int]) -> None:
    case = scalars(2, *weights)
    assert held_for_a_minimum(case) == expected
    solution = solve(problem(case, expected), tol=1e-9, max_iterations=400)
    assert float(solution.log_scales.abs().max()) < 30 and solution.converged
    # a held variable is as good as fixed
    assert not held_for_a_minimum(case, expected)


def test_whole_octaves_stay_whole_over_many_cycles() -> None:
    case = ring([1.0, 9.0, 1 / 70.0])
    given_problem, total = problem(case), torch.zeros(3, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        step = torch.randint(-9, 10, (3,), generator=random) * math.log(2.0)
        total = move(given_problem, total, step.double(), torch.ones(3, dtype=torch.bool))
        octaves = log2_factors(total)
        assert torch.equal(octaves, octaves.round())


def test_zeros_in_large_layers_are_looked_at_one_by_one() -> None:
    """A stream that only reaches itself, in a layer with few weights and in one with few zeros; a zero here or there is none."""
    width = 400
    first, second = np.arange(width), np.arange(width, 2 * width)
    shapes = [(width, 4), (width, width), (4, width)]
    terms = [[(1, first[:, None])], [(1, second[:, None]), (-1, first[None, :])], [(-1, second[None, :])]]

    def found(middle: torch.Tensor, last: torch.Tensor) -> list[int]:
        tensors = [torch.ones(shapes[0], dtype=torch.float64), middle.double(), last.double()]
        return held_for_a_minimum(Case(2 * width, 2.0, shapes, terms, [0.0] * 3, tensors))

    dense = torch.ones(width, width)
    one_zero = dense.clone()
    one_zero[3, 5] = 0.0
    ends = torch.ones(4, width)
    assert not found(one_zero, ends)
    # Channel 5 of the first layer is read by channel 7 alone, and that by nothing.
    lonely, dead_end = dense.clone(), ends.clone()
    lonely[:, 5], dead_end[:, 7] = 0.0, 0.0
    lonely[7, 5] = 1.0
    assert found(lonely, dead_end) == [width + 7]
    sparse = torch.eye(width)
    sparse[7, 5], sparse[5, 5] = 1.0, 0.0
    assert found(sparse, dead_end) == [width + 5, width + 7]

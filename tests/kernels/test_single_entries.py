"""Single entries for p = inf and large p, by definition: the largest of each channel, and those above values by variable."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch

from fxenorm.kernels.backend import get_backend
from fxenorm.solve.max_balance.entries import Entries, lacking
from fxenorm.weights.objective import CurrentObjective

from ..random_plans import Case
from ..solver_problems import BACKEND, problem_of

ROWS, COLUMNS = 80, 70

Listed = dict[tuple[tuple[int, int], ...], list[float]]
"""By exponents of an entry, the logarithms of all entries that have them."""


def case_of(p: float) -> Case:
    """A large float32 matrix, which is kept as it is, one of float64, kernels, groups, a vector, a stack and a number."""
    random = np.random.default_rng(0)
    rows, columns = np.arange(ROWS), np.arange(ROWS, ROWS + COLUMNS)
    columns[3] = -1
    few, others = rows[:6], columns[:5]
    members: list[tuple[tuple[int, ...], list[tuple[int, np.ndarray]], torch.dtype]] = [
        ((ROWS, COLUMNS), [(1, rows[:, None]), (-1, columns[None, :])], torch.float32),
        ((ROWS, COLUMNS), [(1, rows[:, None]), (-1, columns[None, :])], torch.float64),
        ((6, 5, 3, 2), [(1, few.reshape(6, 1, 1, 1)), (-1, others.reshape(1, 5, 1, 1))], torch.float32),
        ((6, 2, 3), [(1, few.reshape(6, 1, 1)), (-1, others[[0, 1, 0, 1, 2, 3]].reshape(6, 1, 1)[:, :, [0]])], torch.float32),
        ((ROWS,), [(2, rows)], torch.float64),
        ((6, 5, 4), [(1, few.reshape(6, 1, 1)), (-1, others.reshape(1, 5, 1)), (1, rows[:4].reshape(1, 1, 4))], torch.float64),
        ((), [(1, np.array(7))], torch.float64),
    ]
    shapes, terms, dtypes = zip(*members, strict=True)
    tensors = [
        torch.from_numpy(np.asarray(random.normal(size=shape))).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    tensors[0][5] = 0.0
    return Case(ROWS + COLUMNS, p, list(shapes), list(terms), [0.0] * len(shapes), tensors)


def on(backend: str, case: Case) -> CurrentObjective:
    """The objective of a case with an executor."""
    executor, program = get_backend(backend), case.program()
    matrices = executor.matrices(program, case.tensors, [None] * len(case.tensors))
    return dataclasses.replace(problem_of(case), backend=executor, matrices=matrices)


def by_definition(case: Case, log_scales: np.ndarray, least: np.ndarray) -> Listed:
    """The entries above the least of the values of their variables after a rescaling, one at a time."""
    found: Listed = {}
    for shape, terms, tensor in zip(case.shapes, case.terms, case.tensors, strict=True):
        full = [(coefficient, np.broadcast_to(ids, shape).reshape(-1)) for coefficient, ids in terms]
        sizes: dict[tuple[tuple[int, int], ...], list[float]] = {}
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(tensor.double().numpy())).reshape(-1)
        kernels = tuple(axis for axis in range(len(shape)) if all(ids.shape[axis] == 1 for _, ids in terms))
        place = np.arange(logs.size).reshape(shape).min(axis=kernels, keepdims=True) if kernels else np.arange(logs.size)
        place = np.broadcast_to(place.reshape(shape) if not kernels else place, shape).reshape(-1)
        for at in np.unique(place):
            totals: Counter[int] = Counter()
            for c, ids in full:
                totals[int(ids[at])] += c
            exponents = tuple(sorted((k, c) for k, c in totals.items() if k >= 0))
            own = logs[place == at]
            total = own.max() if math.isinf(case.p) else np.logaddexp.reduce(case.p * own) / case.p
            moved = total + sum(c * log_scales[k] for k, c in exponents)
            if exponents and moved > min(least[k] for k, _ in exponents):
                sizes.setdefault(exponents, []).append(float(total))
        for exponents, values in sizes.items():
            found.setdefault(exponents, []).extend(values)
    return found


def listed(entries: Entries) -> Listed:
    """Entries in the same form."""
    found: Listed = {}
    for ids, coefficients, log in zip(entries.ids.tolist(), entries.coefficients.tolist(), entries.logs.tolist(), strict=True):
        exponents = tuple(sorted((k, c) for k, c in zip(ids, coefficients, strict=True) if k >= 0))
        found.setdefault(exponents, []).append(log)
    return found


def assert_same(found: Listed, expected: Listed) -> None:
    """Both have the same entries."""
    assert found.keys() == expected.keys()
    for exponents, values in expected.items():
        np.testing.assert_allclose(sorted(found[exponents]), sorted(values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("size", [1.0, 400.0])
@pytest.mark.parametrize("p", [math.inf, 8.0, 1.5])
def test_entries_above_values_by_variable(p: float, size: float, backend: str) -> None:
    """Also where factors leave float64, and where the value of a variable is infinite, of either sign."""
    case = case_of(p)
    random = np.random.default_rng(1)
    log_scales = size * random.normal(size=case.num_scales)
    least = 2.0 * random.normal(size=case.num_scales) + 1.0
    least[random.random(case.num_scales) < 0.5] = np.inf
    least[9] = -np.inf
    found = on(backend, case).entries_where(log_scales, least, lambda some: np.ones(len(some), dtype=bool))
    expected = by_definition(case, log_scales, least)
    assert 100 < sum(map(len, expected.values())) < 12_000
    finite = found.chosen(np.isfinite(found.logs))
    assert_same(
        listed(finite), {key: [v for v in values if v > -np.inf] for key, values in expected.items() if max(values) > -np.inf}
    )


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("p", [math.inf, 8.0, 1.5])
def test_the_largest_entries_of_each_channel(p: float, backend: str) -> None:
    """Of each tensor, in each position of each term."""
    case = case_of(p)
    log_scales = np.random.default_rng(1).normal(size=case.num_scales)
    found = listed(on(backend, case).largest_entries(log_scales, 2))
    assert sum(map(len, found.values())) < 1000
    nothing = np.full(case.num_scales, -np.inf)
    for number in (0, 2):
        one = dataclasses.replace(
            case, shapes=[case.shapes[number]], terms=[case.terms[number]], log_weights=[0.0], tensors=[case.tensors[number]]
        )
        sides: dict[tuple[int, int], list[tuple[float, tuple[tuple[int, int], ...], float]]] = {}
        for exponents, values in by_definition(one, log_scales, nothing).items():
            moved = max(values) + sum(c * log_scales[k] for k, c in exponents)
            for side in exponents:
                sides.setdefault(side, []).append((moved, exponents, max(values)))
        for own in sides.values():
            for _, exponents, value in sorted(own, reverse=True)[:2]:
                assert value == -np.inf or any(abs(value - other) < 1e-12 for other in found[exponents])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_compiled_looks_find_what_the_reference_finds(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tables of many tiles, in any order of memory, in several calls; with zeros, infinities and ties; for all threads."""
    monkeypatch.setattr("fxenorm.kernels.cpu.sums.product_tables._MOST_IN_A_LOOK", 3000)
    random = np.random.default_rng(3)
    rows, columns = np.arange(ROWS), np.arange(ROWS, ROWS + COLUMNS)
    terms = [[(1, rows[:, None]), (-1, columns[None, :])]] * 3 + [[(1, columns[None, :]), (2, rows[:, None])], [(-1, rows)]]
    tensors = [torch.from_numpy(random.normal(size=(ROWS, COLUMNS))).to(dtype) for _ in range(4)]
    tensors[0][4], tensors[0][:, 5], tensors[0][7, 7] = 0.0, 0.0, math.inf
    tensors[1], tensors[2] = tensors[1].T.contiguous().T, tensors[2].round()
    tensors.append(torch.from_numpy(random.normal(size=ROWS)).to(dtype))
    case = Case(ROWS + COLUMNS, math.inf, [tuple(tensor.shape) for tensor in tensors], terms, [0.0] * 5, tensors)
    log_scales, least = random.normal(size=(2, case.num_scales))
    least[11] = np.inf
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            by_size = []
            for backend in ("eager", "compiled"):
                problem = on(backend, case)
                above = problem.entries_where(log_scales, least + 1.5, lambda some: np.isfinite(some.logs))
                best = problem.largest_entries(log_scales, 2)
                moved = best.at(log_scales)
                lines = [np.sort(moved.logs[(moved.ids == k).any(axis=1)])[::-1][:2] for k in range(case.num_scales)]
                by_size.append((listed(above), lines))
                assert 300 < len(above) < len(tensors) * ROWS * COLUMNS / 2
            assert_same(by_size[1][0], by_size[0][0])
            for own, other in zip(by_size[1][1], by_size[0][1], strict=True):
                np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [1.0, 400.0])
def test_the_largest_weight_of_each_channel(size: float) -> None:
    """By sizes or by logarithms, the same as of the entries one at a time; a row of zeros has none."""
    case = case_of(math.inf)
    log_scales = size * np.random.default_rng(1).normal(size=case.num_scales)
    expected = np.full((2, case.num_scales), -np.inf)
    for exponents, values in by_definition(case, log_scales, np.full(case.num_scales, -np.inf)).items():
        moved = max(values) + sum(c * log_scales[k] for k, c in exponents)
        for k, c in exponents:
            expected[int(c > 0), k] = max(expected[int(c > 0), k], moved)
    for found, wanted in zip(problem_of(case).log_sums(torch.from_numpy(log_scales)), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_kernels_of_folded_norms_are_taken_by_their_largest_entry() -> None:
    """By factors that differ along the kernel too, and by one a row."""
    case = case_of(math.inf)
    tensor, program = (
        case.tensors[2],
        dataclasses.replace(case, shapes=case.shapes[2:3], terms=case.terms[2:3], log_weights=[0.0]),
    )
    program = dataclasses.replace(program, tensors=[tensor])
    for shape in ((6, 1, 1, 1), (6, 1, 3, 1), (1, 5, 1, 1)):
        factor = torch.from_numpy(np.random.default_rng(2).normal(size=shape))
        (found,) = BACKEND.matrices(program.program(), [tensor], [factor])
        torch.testing.assert_close(found, (tensor.double() * factor).abs().amax((2, 3), keepdim=True).log(), rtol=0, atol=0)


def test_what_is_known_and_larger_lacks_nothing() -> None:
    """Of entries of the same exponents the larger one decides."""
    ids, coefficients = np.array([[0, 1], [0, 2], [-1, 2]]), np.array([[1, -1], [1, -1], [0, 1]])
    known = Entries(ids[:2], coefficients[:2], np.array([1.0, 2.0]))
    assert lacking(Entries(ids, coefficients, np.array([1.0, 2.5, 0.0])), known, 1e-12).logs.tolist() == [2.5, 0.0]
    assert not len(lacking(known, known, 1e-12))
    wide = Entries(np.array([[5, 2**40, 2**41]]), np.array([[1, 1, 1]]), np.array([0.0]))
    assert lacking(wide, wide, 0.0).logs.tolist() == [] and len(lacking(wide, known, 0.0)) == 1

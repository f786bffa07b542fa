"""Executors prepare sums for `balance`: the same derivatives and totals as the reference, whatever the weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxenorm
from fxenorm.kernels.backend import ObjectiveSums, get_backend
from fxenorm.kernels.program import ReduceProgram, ScaleTarget
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.kernels.rooms import least_and_largest
from fxenorm.weights.weights import Weights

from ..executor_cases import in_order
from ..random_plans import Case, cases
from .test_executors import DTYPES, EXECUTORS

EAGER = EagerBackend()


def both(name: str, program: ReduceProgram, tensors: list[Tensor]) -> tuple[ObjectiveSums, ObjectiveSums]:
    """Returns what an executor prepares, and the reference."""
    none = [None] * len(tensors)
    return (
        EXECUTORS[name].objective_sums(program, EXECUTORS[name].matrices(program, tensors, none)),
        EAGER.objective_sums(program, EAGER.matrices(program, tensors, none)),
    )


def totals(found: tuple[Tensor, Tensor]) -> dict[tuple[tuple[int, int], ...], float]:
    """Returns the sum of the entries of each exponent, whatever their order and however often they come."""
    logs, exponents = found
    rows: list[dict[int, int]] = [{} for _ in logs]
    for entry, label, value in exponents.T.tolist():
        rows[entry][label] = rows[entry].get(label, 0) + value
    sums: dict[tuple[tuple[int, int], ...], float] = {}
    for row, log in zip(rows, logs.tolist(), strict=True):
        key = tuple(sorted((label, value) for label, value in row.items() if value))
        sums[key] = sums.get(key, 0.0) + math.exp(log)
    return sums


def assert_same(own: ObjectiveSums, reference: ObjectiveSums, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales, vector = torch.randn(2, count, dtype=torch.float64, generator=generator)
    for at in (None, scales):
        torch.testing.assert_close(own.contributions(at), reference.contributions(at), rtol=1e-11, atol=1e-11, equal_nan=True)
    free = torch.rand(count, generator=generator) < 0.8
    given = (scales, torch.zeros(count, dtype=torch.float64), free)
    one, other = (sums.curvature(*given).product(vector) for sums in (own, reference))
    torch.testing.assert_close(
        one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max().nan_to_num()) if count else 0.0, equal_nan=True
    )
    labels = torch.randint(0, 4, (count,), generator=generator)  # 3 stands for fixed
    one, other = (totals(sums.aggregate(scales, labels, 3)) for sums in (own, reference))
    assert one.keys() == other.keys()
    for key, value in other.items():
        assert one[key] == pytest.approx(value, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", EXECUTORS)
@settings(max_examples=60)
@given(case=cases(offsets=True), dtype=st.sampled_from(DTYPES), order=st.permutations(range(3)), seed=st.integers(0, 2**31))
def test_random_tensors(name: str, case: Case, dtype: torch.dtype, order: list[int], seed: int) -> None:
    tensors = [in_order(tensor.to(dtype), order) for tensor in case.tensors]
    program = case.program()
    assert_same(*both(name, program, tensors), program.num_scales, seed)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 3.0, 4.0, 8.0, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_of_several_tiles(name: str, p: float, dtype: torch.dtype) -> None:
    # Beyond 4,096 entries weights of 32 and 16 bits stand for their own powers; 70 x 90 has rows and columns that fill no vector.
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(90, 70, bias=False), nn.ReLU(), nn.Linear(70, 90, bias=False), nn.ReLU(), nn.Linear(90, 1200, bias=False)),
        *(nn.ReLU(), nn.Linear(1200, 65)),
    )
    plan = fxenorm.analyze(model, p=p)
    model.to(dtype)
    weights = plan.rescaler.open()
    program, (tensors, _) = weights.program, weights.gather()
    own, reference = both(name, program, tensors)
    if math.isinf(p):
        torch.testing.assert_close(own.contributions(), reference.contributions(), rtol=1e-11, atol=1e-11)
    else:
        assert_same(own, reference, plan.num_scales, 1)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_zeros_and_what_is_not_finite(name: str, bad: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 64, bias=False), nn.ReLU(), nn.Linear(64, 80, bias=False))
    plan = fxenorm.analyze(model)
    model.to(torch.bfloat16)
    with torch.no_grad():
        model[0].weight[3] = bad
        model[2].weight[5, 7] = bad
    weights = plan.rescaler.open()
    own, reference = both(name, weights.program, weights.gather()[0])
    torch.testing.assert_close(own.contributions(), reference.contributions(), rtol=1e-11, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 500, bias=False), nn.ReLU(), nn.Linear(500, 600, bias=False))
    plan = fxenorm.analyze(model)
    weights = plan.rescaler.open()
    compiled = EXECUTORS.get("compiled")
    if compiled is None:
        pytest.skip("there is no compiler")
    sums = compiled.objective_sums(weights.program, compiled.matrices(weights.program, *weights.gather()))
    scales = torch.randn(plan.num_scales, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = sums.contributions(scales)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(sums.contributions(scales), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_leaves_its_room_is_found_by_every_executor(name: str, dtype: torch.dtype) -> None:
    kind = torch.finfo(dtype)
    values = torch.tensor([1.0, -2.0, 0.0, -0.0, kind.max, -kind.smallest_normal], dtype=torch.float64).to(dtype)
    for size, last in ((1, 0), (6, 5), (5, 4), (200, 4), (200, 5)):
        tensor = torch.ones(size, dtype=dtype)
        tensor[-1] = values[last]
        target = ScaleTarget("weight", tensor, ((1, torch.zeros(1, dtype=torch.int64)),))
        for shift in (-2.0, 0.0, 2.0):
            scales = torch.tensor([shift], dtype=torch.float64)
            assert torch.equal(EXECUTORS[name].leaving([target], scales), EAGER.leaving([target], scales)), (last, shift)
            assert EXECUTORS[name].rounded([target], scales) == EAGER.rounded([target], scales)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ends_of_compiled_passes_are_those_of_the_reference(dtype: torch.dtype) -> None:
    if "compiled" not in EXECUTORS:
        pytest.skip("there is no compiler")
    compiled = get_backend("compiled")
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 32, 33, 100, 70_001):
        tensor = torch.randn(size, generator=generator).to(dtype)
        tensor[torch.rand(size, generator=generator) < 0.2] = 0.0
        tensor[size // 2] = 3.0
        target = ScaleTarget("weight", tensor, ())
        assert compiled.least_and_largest(target) == least_and_largest(target)
        tensor[0] = math.nan
        assert math.isnan(compiled.least_and_largest(target)[1]) and math.isnan(least_and_largest(target)[1])


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [2.0, 3.7, 6.0])
def test_lines_of_large_tensors_are_summed_as_by_the_reference(name: str, dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(310, 320), nn.ReLU(), nn.Linear(320, 300), nn.GELU(), nn.Conv2d(1, 70, 33), nn.ReLU())
    model.append(nn.Conv2d(70, 2, 33))
    layers = [[model[0], model[2]], [model[4], model[6]]]
    for chain in layers:
        weights = _weights_of(nn.Sequential(chain[0], nn.ReLU(), chain[1]).to(dtype), p, 2 + 2 * isinstance(chain[0], nn.Conv2d))
        tensors, factors = weights.gather()
        expected = EAGER.matrices(weights.program, tensors, factors)
        found = EXECUTORS[name].matrices(weights.program, tensors, factors)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            again = EXECUTORS[name].matrices(weights.program, tensors, factors)
        finally:
            torch.set_num_threads(before)
        assert all(map(torch.equal, again, found))


def _weights_of(model: nn.Module, p: float, ndim: int) -> Weights:
    """Returns the weights of a chain."""
    dtype = next(model.parameters()).dtype
    shape = (2, 310) if ndim == 2 else (1, 1, 80, 80)
    plan = fxenorm.analyze(model, torch.empty(shape, dtype=dtype), p=p)
    return Weights(plan.rescaler.analysis, model)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_found_wherever_they_are(name: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the least number there is
    for size in (1, 31, 64, 1000, 300_001):
        tensor = torch.full((size,), tiny, dtype=dtype)
        tensor[size // 3] = math.nan
        assert not EXECUTORS[name].has_zeros(2.0, tensor) and not EXECUTORS[name].has_zeros(2.0, -tensor)
        for place in {0, size // 2, size - 1}:
            for zero in (0.0, -0.0):
                held = tensor.clone()
                held[place] = zero
                assert EXECUTORS[name].has_zeros(2.0, held)
    logs = torch.zeros(70_000, dtype=torch.float64)
    assert not EXECUTORS[name].has_zeros(8.0, logs)
    logs[-1] = -math.inf
    assert EXECUTORS[name].has_zeros(8.0, logs) and not EXECUTORS[name].has_zeros(8.0, logs[:-1])


def test_sums_are_remembered_by_the_numbers_and_not_by_the_place() -> None:
    torch.manual_seed(0)
    objective = _weights_of(nn.Sequential(nn.Linear(310, 20), nn.ReLU(), nn.Linear(20, 3)), 2.0, 2).objective()
    made = []
    real = objective.backend.objective_sums

    class Counted:
        """Sums that note at which log-scales they are asked for."""

        def __init__(self) -> None:
            self._real = real(objective.program, objective.matrices)

        def contributions(self, log_scales: Tensor | None = None) -> Tensor:
            made.append(log_scales)
            return self._real.contributions(log_scales)

    objective._recent.prepared(Counted)
    scales = torch.randn(20, dtype=torch.float64)
    first = objective.log_sums(scales)
    assert torch.equal(first[0], objective.log_sums(scales.clone())[0]) and len(made) == 1
    for number in range(2, 8):
        objective.log_sums(scales + number)
    assert torch.equal(first[0], objective.log_sums(scales.clone())[0]) and len(made) == 8  # forgotten, and made anew
    scales += 1.0
    assert not torch.equal(objective.log_sums(scales)[0], first[0])
    start = objective.log_sums()
    count = len(made)
    assert torch.equal(start[0], objective.log_sums(torch.zeros(20, dtype=torch.float64))[0]) and len(made) == count

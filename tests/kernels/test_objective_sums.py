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

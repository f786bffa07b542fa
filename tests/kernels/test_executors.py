"""Every executor of the table that works here, against the reference: the same sums, weights and cycles, the same promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxenorm.errors import OptionError
from fxenorm.kernels import BACKEND_NAMES, backend
from fxenorm.kernels.backend import Backend, get_backend
from fxenorm.kernels.reference.executor import EagerBackend

from ..executor_cases import ROUNDINGS, Twin, assert_same_sums, assert_same_weights, in_order, targets_of, trained
from ..random_plans import Case, cases

pytestmark = pytest.mark.filterwarnings("ignore:backend='triton' runs on cuda")

EAGER = EagerBackend()
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def those_that_work() -> dict[str, Backend]:
    """By name, the executors that can be had on this machine."""
    found = {}
    for name in sorted(backend._BACKENDS):
        try:
            found[name] = get_backend(name)
        except OptionError:
            continue
    return found


EXECUTORS = those_that_work()


def test_the_options_offer_exactly_the_executors_of_the_table() -> None:
    assert sorted(BACKEND_NAMES) == sorted(["auto", *backend._BACKENDS])
    assert "eager" in EXECUTORS and all(executor.name == name for name, executor in EXECUTORS.items())


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.usefixtures("default_dtype")
@settings(max_examples=150)
@given(case=cases(offsets=True), dtype=st.sampled_from(DTYPES), order=st.permutations(range(3)))
def test_sums_are_those_of_the_reference(name: str, case: Case, dtype: torch.dtype, order: list[int]) -> None:
    tensors = [in_order(tensor.to(dtype), order) for tensor in case.tensors]
    program, none = case.program(), [None] * len(tensors)
    expected = EAGER.reduce(program, tensors, none)
    assert_same_sums(EXECUTORS[name].reduce(program, tensors, none), expected)
    assert_same_sums(EXECUTORS[name].sums(program, EXECUTORS[name].matrices(program, tensors, none)), expected)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.usefixtures("default_dtype")
@settings(max_examples=100)
@given(
    case=cases(offsets=True),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(range(3)),
    power=st.sampled_from([1, -1, -2]),
    seed=st.integers(0, 99),
)
def test_weights_are_those_of_the_reference(
    name: str, case: Case, dtype: torch.dtype, order: list[int], power: int, seed: int
) -> None:
    log_scales = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, case.num_scales))
    ours = [in_order(tensor.to(dtype), order) for tensor in case.tensors]
    theirs = [tensor.clone() for tensor in ours]
    EXECUTORS[name].apply(targets_of(case, ours, power), log_scales)
    EAGER.apply(targets_of(case, theirs, power), log_scales)
    for one, other in zip(ours, theirs, strict=True):
        assert_same_weights(one, other)


@pytest.mark.parametrize("name", EXECUTORS)
@settings(max_examples=60)
@given(
    case=cases(),
    dtype=st.sampled_from(list(ROUNDINGS)),
    order=st.permutations(range(3)),
    hold=st.lists(st.booleans(), min_size=6, max_size=6),
    limit=st.sampled_from([math.inf, 0.1]),
    count=st.integers(1, 4),
)
def test_prepared_cycles_are_those_of_the_reference_or_change_nothing(
    name: str, case: Case, dtype: torch.dtype, order: list[int], hold: list[bool], limit: float, count: int
) -> None:
    twin, held = Twin(case, dtype, order), torch.tensor(hold[: case.num_scales])
    task = twin.task(held, limit)
    runner = EXECUTORS[name].cycles(task)
    if runner is not None and runner.run(task.factors, count):
        twin.eager_cycles(count, held, limit)
    twin.assert_same(roundings=8.0)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_closed_gate_holds_everything(name: str, dtype: torch.dtype) -> None:
    case = Case(1, 2.0, [(2, 2), (2, 2)], [[(1, np.array([[0]]))], [(-1, np.array([[0]]))]], [0.0, 0.0], [])
    case.tensors = [torch.full((2, 2), 2.0, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)]
    twin = Twin(case, dtype, [0, 1, 2])
    task = twin.task(torch.zeros(1, dtype=torch.bool), math.inf)
    runner = EXECUTORS[name].cycles(task)
    if runner is not None:
        runner.run(task.factors, 1, torch.tensor(False))
    twin.assert_same()


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_no_room_is_not_written(name: str, dtype: torch.dtype, size: float) -> None:
    """`apply_within` multiplies as `apply` does, or says no and leaves the tensors but for a rounding."""
    case = Case(1, 2.0, [(3, 4)], [[(1, np.array([[0]]))]], [0.0], [])
    for step in (-40.0, -1.0, 0.5, 40.0):
        ours = [torch.full((3, 4), size, dtype=torch.float64).to(dtype)]
        theirs, log_scales = [ours[0].clone()], torch.tensor([step], dtype=torch.float64)
        if EXECUTORS[name].apply_within(targets_of(case, ours), log_scales, frozenset({"0"})):
            EAGER.apply(targets_of(case, theirs), log_scales)
        assert_same_weights(ours[0], theirs[0])
        assert bool(ours[0].isfinite().all()) and bool((ours[0] > 0).all())


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("options", [{}, {"p": 1.0}, {"p": math.inf}, {"c": 1.2}, {"max_log_scale": 0.1}, {"scales": "pow2"}])
@pytest.mark.filterwarnings("ignore:p=inf with batchnorm")
def test_steps_are_those_of_the_reference(name: str, options: dict[str, Any]) -> None:
    (one, first, plan), (other, second, reference) = trained(name, **options), trained("eager", **options)
    for cycles in (1, 1, 3):
        plan.step(first, cycles=cycles)
        reference.step(second, cycles=cycles)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-30)
        torch.testing.assert_close(first.state[a]["momentum_buffer"], second.state[b]["momentum_buffer"], rtol=2e-6, atol=1e-30)

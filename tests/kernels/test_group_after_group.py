"""Gauss-Seidel cycles in one compiled call: the groups in their order, each from the sums that those before it left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxenorm.kernels.cpu import build
from fxenorm.kernels.cpu.executor import CompiledBackend
from fxenorm.solve.jacobi import jacobi_step

from ..executor_cases import EAGER, Twin
from ..random_plans import Case, cases

try:
    build.library()
except build.BuildError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)


@settings(max_examples=150)
@given(
    case=cases(infinite=False),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    order=st.permutations(range(3)),
    labels=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    hold=st.lists(st.booleans(), min_size=6, max_size=6),
    count=st.integers(1, 3),
)
def test_cycles_are_those_of_plain_pytorch(
    case: Case, dtype: torch.dtype, order: list[int], labels: list[int], hold: list[bool], count: int
) -> None:
    twin, held = Twin(case, dtype, order), torch.tensor(hold[: case.num_scales])
    groups = np.array(labels[: case.num_scales], dtype=np.int64)
    task = twin.task(held, 0.7, groups)
    runner = CompiledBackend().cycles(task)
    if runner is None or not runner.run(task.factors, count):
        twin.assert_same()
        return
    program, none = twin.case.program(), [None] * len(twin.theirs)
    matrices, total = EAGER.matrices(program, twin.theirs, none), torch.zeros(case.num_scales, dtype=torch.float64)
    for _ in range(count):
        for label in sorted(set(groups.tolist())):
            sums = EAGER.sums(program, matrices, total)
            step = jacobi_step(sums.log_negative, sums.log_positive, program.degree, program.p, held)
            total = torch.where(torch.from_numpy(groups == label), (total + step).clamp(-0.7, 0.7), total)
    EAGER.apply(twin.targets(twin.theirs, twin.their_momentum), total)
    twin.assert_same(roundings=8.0)

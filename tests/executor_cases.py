"""Tensors that an executor and the reference move side by side, and how close both must come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import fxenorm
from fxenorm.kernels.backend import CycleTask
from fxenorm.kernels.program import ChannelSums, ScaleTarget, term_tensors
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.solve.jacobi import jacobi_step

from .random_plans import Case

__all__ = ["ROUNDINGS", "Twin", "assert_same_sums", "assert_same_weights", "in_order", "network", "targets_of", "trained"]

EAGER = EagerBackend()
ROUNDINGS = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2**-7}


def assert_same_sums(one: ChannelSums, other: ChannelSums) -> None:
    """Up to the order of additions."""
    for a, b in ((one.log_negative, other.log_negative), (one.log_positive, other.log_positive)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def assert_same_weights(one: torch.Tensor, other: torch.Tensor) -> None:
    """Up to the order in which the factors of three terms are multiplied: three roundings of half a unit on either side."""
    assert one.dtype == other.dtype
    torch.testing.assert_close(one.double(), other.double(), rtol=3 * torch.finfo(one.dtype).eps, atol=1e-44)


def targets_of(case: Case, tensors: list[torch.Tensor], power: int = 1) -> list[ScaleTarget]:
    """One for each tensor."""
    return [
        ScaleTarget(str(index), tensor, term_tensors(terms, tensor.ndim, case.num_scales), power, case.offset(index, power))
        for index, (tensor, terms) in enumerate(zip(tensors, case.terms, strict=True))
    ]


def in_order(tensor: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The same values with the axes in another order in memory."""
    chosen = [axis for axis in order if axis < tensor.ndim]
    return tensor.permute(chosen).contiguous().permute([chosen.index(axis) for axis in range(tensor.ndim)])


def moving(case: Case) -> Case:
    """A case in which every variable has both sides: two more tensors that carry all of them, one each way."""
    ids = np.arange(case.num_scales)
    sizes = [
        torch.linspace(0.5, 2.0, case.num_scales, dtype=torch.float64),
        torch.linspace(3.0, 1.0, case.num_scales, dtype=torch.float64),
    ]
    return replace(
        case,
        shapes=[*case.shapes, (case.num_scales,), (case.num_scales,)],
        terms=[*case.terms, [(1, ids)], [(-1, ids)]],
        log_weights=[*case.log_weights, 0.0, 0.0],
        tensors=[*case.tensors, *sizes],
    )


class Twin:
    """Weights and their momentum, moved by the compiled kernels and by the eager executor."""

    def __init__(self, case: Case, dtype: torch.dtype, order: list[int]) -> None:
        self.case = case = moving(case)
        self.ours = [in_order(tensor.to(dtype), order) for tensor in case.tensors]
        self.theirs = [tensor.clone() for tensor in self.ours]
        self.our_momentum = [torch.ones_like(tensor) for tensor in self.ours]
        self.their_momentum = [torch.ones_like(tensor) for tensor in self.ours]

    def targets(self, weights: list[torch.Tensor], momentum: list[torch.Tensor]) -> list[ScaleTarget]:
        """What follows a rescaling."""
        terms = [
            term_tensors(given, tensor.ndim, self.case.num_scales) for given, tensor in zip(self.case.terms, weights, strict=True)
        ]
        named = [ScaleTarget(str(index), *item) for index, item in enumerate(zip(weights, terms, strict=True))]
        return named + [ScaleTarget("momentum", *item, power=-1) for item in zip(momentum, terms, strict=True)]

    def task(self, held: torch.Tensor, limit: float, groups: np.ndarray | None = None) -> CycleTask:
        """What executors are asked to run on our side."""
        return CycleTask(
            *(self.case.program(), self.ours, [None] * len(self.ours), self.targets(self.ours, self.our_momentum)),
            model_tensors=len(self.ours),
            counted=frozenset(map(str, range(len(self.ours)))),
            held=held,
            limit=limit,
            reach=float(max(2, sum(abs(coefficient) for terms in self.case.terms for coefficient, _ in terms))),
            growth=80.0,
            groups=groups,
        )

    def eager_cycles(self, count: int, held: torch.Tensor, limit: float) -> None:
        """Their side, by definition."""
        program, none = self.case.program(), [None] * len(self.theirs)
        matrices, total = EAGER.matrices(program, self.theirs, none), torch.zeros(self.case.num_scales, dtype=torch.float64)
        for _ in range(count):
            sums = EAGER.sums(program, matrices, total)
            total += jacobi_step(sums.log_negative, sums.log_positive, program.degree, program.p, held)
            total.clamp_(-limit, limit)
        EAGER.apply(self.targets(self.theirs, self.their_momentum), total)

    def assert_same(self, roundings: float = 1.0) -> None:
        """Weights and momentum agree to some roundings of their type."""
        for one, other in zip(self.ours + self.our_momentum, self.theirs + self.their_momentum, strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=roundings * ROUNDINGS[one.dtype], atol=1e-37)


def network() -> nn.Sequential:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)
    )


def trained(backend: str, **options: object) -> tuple[nn.Sequential, torch.optim.SGD, fxenorm.Plan]:
    """A network with momentum, and its plan."""
    torch.manual_seed(0)
    model = network()
    plan = fxenorm.analyze(model, torch.randn(2, 3, 8, 8), backend=backend, **options)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    return model, optimizer, plan

"""The one loop of cycles: from the weights as they are to the log-scales of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.factors import MOST_GROWTH
from ..kernels.rooms import are_far_from_ends
from ..solve.iterate import move, round_limit
from ..solve.jacobi import jacobi_step
from ..solve.sweeps import gauss_seidel_sweep
from ..weights.objective import CurrentObjective
from ..weights.targets import Targets
from ..weights.weights import Weights

__all__ = ["CycleKind", "cycles", "within_limit"]


@dataclass(frozen=True, eq=False)
class CycleKind:
    """The kind of a step's cycles, worked out once a step.

    Attributes:
        count: number of cycles.
        powers_of_two: (K,) bool: variables that move by powers of two only; None: none.
        takes_groups: whether a cycle takes group after group; powers of two need the bound that only a Jacobi cycle gives.
    """

    count: int
    powers_of_two: Tensor | None
    takes_groups: bool

    @classmethod
    def of(cls, weights: Weights, count: int) -> CycleKind:
        """Returns the kind of cycles that the options and types of some weights ask for."""
        powers_of_two = weights.powers_of_two()
        by_groups = weights.analysis.options.solver == "gauss-seidel" and powers_of_two is None
        return cls(count, powers_of_two, by_groups)

    @property
    def needs_one_sum(self) -> bool:
        """Whether the log-scales follow from N and P of the weights as they are, without another look at these."""
        return self.count == 1 and self.powers_of_two is None and not self.takes_groups


def cycles(weights: Weights, targets: Targets, count: int) -> Tensor:
    """Returns (K,) log-scales of `count` cycles, small enough that no entry of a target leaves its room; waits for nothing."""
    kind = CycleKind.of(weights, count)
    if _looks_first(weights, targets):
        # On a CPU a look at the weights costs less than all rooms, which hardly any step needs.
        most = torch.full((2, weights.program.num_scales), MOST_GROWTH, dtype=torch.float64, device="cpu")
        found = within_limit(weights, most, kind)
        if are_far_from_ends(targets.tensors, found):
            return found
    return within_limit(weights, targets.headroom(), kind)


def _looks_first(weights: Weights, targets: Targets) -> bool:
    """Whether all numbers lie where an answer can be waited for."""
    return weights.device.type == "cpu" and all(target.tensor.device.type == "cpu" for target in targets.tensors)


def within_limit(
    weights: Weights,
    limit: Tensor,
    kind: CycleKind,
    first: tuple[Tensor, Tensor] | None = None,
    objective: CurrentObjective | None = None,
) -> Tensor:
    """Returns (K,) log-scales of some cycles.

    Args:
        weights: the model's tensors.
        limit: (2, K) how far each variable can go up and down.
        kind: how many cycles, and of which kind.
        first: (K,) log N and log P of the weights as they are; None: they are summed here.
        objective: with the matrices read; None: they are read here where they are needed.
    """
    held, powers_of_two, analysis = weights.held_mask(), kind.powers_of_two, weights.analysis
    if analysis.most_log_scale is not None:
        limit = limit.clamp(max=analysis.most_log_scale)
    if powers_of_two is not None:
        limit = round_limit(limit, powers_of_two)
    degree, p = weights.program.degree, analysis.options.p
    if kind.needs_one_sum:
        negative, positive = weights.log_sums() if first is None else first
        return jacobi_step(negative, positive, degree, p, held, limit)
    bounded = (weights.objective(held) if objective is None else objective).within(limit)
    total = torch.zeros_like(degree)
    for cycle in range(kind.count):
        if kind.takes_groups:
            total = gauss_seidel_sweep(bounded, total)
            continue
        negative, positive = bounded.log_sums(total) if cycle or first is None else first
        total = move(bounded, total, jacobi_step(negative, positive, degree, p, held), powers_of_two)
    return total

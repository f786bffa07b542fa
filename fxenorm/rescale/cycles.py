"""The one loop of cycles: from the weights as they are to the log-scales of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.factors import MOST_GROWTH
from ..kernels.rooms import are_far_from_ends
from ..solve.iterate import round_limit, rounded_if_better
from ..solve.jacobi import clamped, jacobi_step, kept_of_a_cycle, round_to_powers_of_two
from ..solve.sweeps import gauss_seidel_sweep
from ..weights.objective import CurrentObjective
from ..weights.targets import Targets
from ..weights.weights import Weights

__all__ = ["LOOKS_EVERY", "CycleKind", "cycles", "within_limit"]

LOOKS_EVERY = 64
"""Every so many steps, what single cycles leave is looked for: moves below an octave or a dead band that add up over layers. It
takes some thirty times as long as a step that only reads, so that this adds half of one to each."""

_FAR_CYCLES = 32
"""Cycles of a far look: they carry the news of a channel as many layers far."""


@dataclass(frozen=True, eq=False)
class CycleKind:
    """The kind of a step's cycles, worked out once a step.

    Attributes:
        count: number of cycles.
        powers_of_two: (K,) bool: variables that move by powers of two only; None: none.
        takes_groups: whether a cycle takes group after group; powers of two and a dead band need the bound that only a Jacobi
            cycle gives.
        deadband: variables that would move by less wait.
        looks_far: whether what single cycles leave for ever, below an octave or the dead band, is looked for; see `LOOKS_EVERY`.
    """

    count: int
    powers_of_two: Tensor | None
    takes_groups: bool
    deadband: float = 0.0
    looks_far: bool = False

    @classmethod
    def of(cls, weights: Weights, count: int, looks_far: bool = False) -> CycleKind:
        """Returns the kind of cycles that the options and types of some weights ask for.

        Args:
            weights: the model's tensors.
            count: how many cycles.
            looks_far: whether it is time for that; it is left out where single cycles leave nothing.
        """
        powers_of_two, options = weights.powers_of_two(), weights.analysis.options
        leaves_some = powers_of_two is not None or options.deadband > 0.0
        by_groups = options.solver == "gauss-seidel" and not leaves_some
        return cls(count, powers_of_two, by_groups, options.deadband, looks_far and leaves_some)

    @property
    def leaves_some(self) -> bool:
        """Whether single cycles leave something for ever: less than an octave, or than the dead band."""
        return self.powers_of_two is not None or self.deadband > 0.0

    @property
    def needs_one_sum(self) -> bool:
        """Whether the log-scales follow from N and P of the weights as they are, without another look at these."""
        return self.count == 1 and not self.takes_groups and not self.looks_far


def cycles(weights: Weights, targets: Targets, count: int, looks_far: bool = False) -> Tensor:
    """Returns (K,) log-scales of `count` cycles, small enough that no entry of a target leaves its room; waits for nothing."""
    kind = CycleKind.of(weights, count, looks_far)
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
        return kept_of_a_cycle(jacobi_step(negative, positive, degree, p, held, limit), powers_of_two, kind.deadband)
    bounded = (weights.objective(held) if objective is None else objective).within(limit)
    total = torch.zeros_like(degree)
    for cycle in range(max(kind.count, _FAR_CYCLES) if kind.looks_far else kind.count):
        if kind.takes_groups:
            total = gauss_seidel_sweep(bounded, total)
            continue
        negative, positive = bounded.log_sums(total) if cycle or first is None else first
        step = jacobi_step(negative, positive, degree, p, held)
        if not kind.looks_far:
            step = kept_of_a_cycle(step, powers_of_two, kind.deadband)
        total = clamped(total + step, limit)
    if powers_of_two is None:
        return total
    if kind.looks_far:
        total = rounded_if_better(bounded, total, powers_of_two)
    # Sums of whole octaves in natural logarithms drift by rounding errors.
    return round_to_powers_of_two(total, powers_of_two)

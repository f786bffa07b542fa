"""The ways to rescale a net before it is rounded, and the starts from which they set out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fxenorm
from fxenorm import Bits, Plan

SHIFTED, FACTOR, SPREAD = 3, 30.0, 1.5
PER_BATCH = 16
"""Images whose derivatives are found in one backward pass: each pass is one draw of signs."""


@dataclass
class Case:
    """One net at one start.

    Attributes:
        model: in float64.
        calibration: the images on which activations are observed.
        plans: those of the net by p and option, made once for all starts and seeds of it.
        seen: the observations at this start, made once for all copies.
    """

    model: nn.Module
    calibration: Tensor
    plans: dict[Any, Plan] = field(default_factory=dict)
    seen: dict[bool, Any] = field(default_factory=dict)

    def observations(self, derivatives: bool = False) -> Any:
        """The observations on the calibration images, made before the first rescaling of any copy."""
        if derivatives not in self.seen:
            batches = self.calibration.split(PER_BATCH) if derivatives else [self.calibration]
            self.seen[derivatives] = self.plan().observe(batches, derivatives=derivatives)
        return self.seen[derivatives]

    def copy(self) -> Case:
        """The same start, to be rescaled."""
        return Case(copy.deepcopy(self.model), self.calibration, self.plans, self.seen)

    def plan(self, p: float = 2.0, biases: str = "scale") -> Plan:
        """The plan of this model."""
        if (p, biases) not in self.plans:
            self.plans[p, biases] = fxenorm.analyze(self.model, self.calibration[:2], p=p, biases=biases, modes="eval")
        return self.plans[p, biases].bind(self.model)


@dataclass(frozen=True)
class Method:
    """A way to rescale a case in place.

    Attributes:
        run: does it, for some bits, and returns the (num_scales,) log-scales.
        by_bits: whether it does so in another way for other bits.
    """

    run: Callable[[Case, Bits], Tensor]
    by_bits: bool = False


# ---------------------------------------------------------------- SmoothQuant, site by site


def sites_of(plan: Plan, observations: Any, group: Any) -> list[Any]:
    """The inputs of layers that the variables of a group move, one variable a channel."""
    readers = {port.parameter.rpartition(".")[0] for port in group.consumers}
    inside = range(group.variables.start, group.variables.stop)
    return [
        seen
        for seen in observations
        if seen.direction == "input"
        and seen.module in readers
        and len(seen.terms) == 1
        and seen.terms[0][0] == 1
        and set(seen.terms[0][1].tolist()) <= {-1, *inside}
    ]


def largest_by_variable(plan: Plan, values: Tensor, ids: Tensor) -> Tensor:
    """The largest value of each variable; 0 of those that have none."""
    flat = ids.expand(values.shape).reshape(-1)
    found = torch.zeros(plan.num_scales + 1, dtype=torch.float64)
    return found.scatter_reduce_(0, torch.where(flat < 0, plan.num_scales, flat), values.double().reshape(-1), "amax")[:-1]


def smoothed(case: Case, alpha: float, norms_only: bool = False, last_first: bool = False) -> Tensor:
    """SmoothQuant's closed form, max|x|^alpha / max|w|^(1 - alpha), at one site after another, as tools go through layers.

    One sweep in the order of the graph depends on the start: a site reads its consumers' rows before their own site moves them.
    From the last site on, all that a site reads stays as it is, so the end is that of sweeps which go on until nothing moves.
    """
    plan = case.plan()
    observations, total = case.observations(), torch.zeros(plan.num_scales, dtype=torch.float64)
    tensors = dict(case.model.named_parameters())
    for group in reversed(plan.groups) if last_first else plan.groups:
        sites = sites_of(plan, observations, group)
        if not sites or (norms_only and any(tensors[port.parameter].ndim > 1 for port in group.producers)):
            continue
        inputs, columns = torch.zeros(plan.num_scales, dtype=torch.float64), torch.zeros(plan.num_scales, dtype=torch.float64)
        for seen in sites:
            sizes = torch.maximum(seen.maximum.abs(), seen.minimum.abs())
            inputs = torch.maximum(inputs, largest_by_variable(plan, sizes, torch.from_numpy(seen.terms[0][1].copy())))
        for port in group.consumers:
            for coefficient, ids in plan.exponents[port.parameter]:
                if coefficient == -1:
                    columns = torch.maximum(columns, largest_by_variable(plan, tensors[port.parameter].detach().abs(), ids))
        own = torch.zeros(plan.num_scales, dtype=torch.bool)
        own[group.variables.start : group.variables.stop] = True
        step = torch.where(own & (inputs > 0) & (columns > 0), (1 - alpha) * columns.log() - alpha * inputs.log(), 0.0)
        plan.rescale(step)
        observations, total = plan.follow(observations), total + step
    return total


# ---------------------------------------------------------------- all of them


def balanced(p: float, biases: str = "scale") -> Method:
    """The weights of least p-norm."""
    return Method(lambda case, bits: case.plan(p, biases).balance().log_scales)


def migrated(case: Case, bits: Bits) -> Tensor:
    """Migration over all sites at once, as a sum of powers."""
    term = fxenorm.objectives.Migration(case.observations(), alpha=0.5, p=32)
    return case.plan().balance(objective=term).log_scales


def least_noise(case: Case, bits: Bits) -> Tensor:
    """The least predicted noise at some bits."""
    term = fxenorm.objectives.PredictedNoise(case.observations(derivatives=True), bits)
    return case.plan().balance(objective=term).log_scales


METHODS: dict[str, Method] = {
    "nothing": Method(lambda case, bits: torch.zeros(case.plan().num_scales, dtype=torch.float64)),
    "SmoothQuant 0.5, norms only": Method(lambda case, bits: smoothed(case, 0.5, norms_only=True)),
    "SmoothQuant 0.5, all sites": Method(lambda case, bits: smoothed(case, 0.5)),
    "SmoothQuant 0.5, last site first": Method(lambda case, bits: smoothed(case, 0.5, last_first=True)),
    "p = 2": balanced(2.0),
    "p = 8": balanced(8.0),
    "p = inf": balanced(math.inf),
    "p = inf, biases counted": balanced(math.inf, "count"),
    "Migration 0.5": Method(migrated),
    "PredictedNoise": Method(least_noise, by_bits=True),
}
NOT_FOR = {"depthwise": ("SmoothQuant 0.5, norms only",), "transformer": ("p = inf, biases counted",)}


def methods_of(net: str) -> dict[str, Method]:
    """The methods for a net, by name."""
    return {name: method for name, method in METHODS.items() if name not in NOT_FOR[net]}


# ---------------------------------------------------------------- starts


def as_trained(case: Case, seed: int) -> None:
    """Leaves the net as it is."""


def rescaled(case: Case, seed: int) -> None:
    """Another representative of the same function: each variable by a normal log-scale."""
    plan = case.plan()
    plan.rescale(SPREAD * torch.randn(plan.num_scales, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def with_outliers(case: Case, seed: int) -> None:
    """The same function with three channels of each group that a layer reads made 30 times larger."""
    plan, random = case.plan(), torch.Generator().manual_seed(seed)
    observations = plan.observe([case.calibration[:2]])
    log_scales = torch.zeros(plan.num_scales, dtype=torch.float64)
    for group in plan.groups:
        if sites_of(plan, observations, group):
            size = group.variables.stop - group.variables.start
            log_scales[group.variables.start + torch.randperm(size, generator=random)[:SHIFTED]] = math.log(FACTOR)
    plan.rescale(log_scales)


STARTS: dict[str, dict[str, Callable[[Case, int], None]]] = {
    "depthwise": {"trained": as_trained, "rescaled": rescaled},
    "transformer": {"trained": as_trained, "outliers": with_outliers},
}

"""The arms that balance: after every step, after every k, once an epoch, once at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import fxenorm

from .method import Method

if TYPE_CHECKING:
    from ..training import Training

Options = tuple[tuple[str, Any], ...]

RELEASED: Options = (("batchnorm", "skip"), ("biases", "skip"), ("balance_last", False), ("solver", "jacobi"))
"""Options of `fxenorm.analyze` with which a plan makes the update of the original release."""


@dataclass(frozen=True)
class PlanStep(Method):
    """One cycle of balancing after every step.

    Attributes:
        c: as `fxenorm.analyze` takes it.
        options: further options of `fxenorm.analyze`.
        every: number of steps between two cycles; 0: one cycle at the end of each epoch.
        state: as `Plan.step` takes it.
    """

    c: float | str = 1.0
    options: Options = ()
    every: int = 1
    state: str = "reexpress"

    def after_step(self, training: Training, step: int) -> None:
        """Balances where the turn has come."""
        if step % (self.every or training.steps_an_epoch) == 0:
            self.cycle(training)

    def cycle(self, training: Training) -> None:
        """One cycle on the weights, with the state of the optimizer."""
        training.plan(self.c, self.options).step(training.optimizer, state=self.state)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Displacement(PlanStep):
    """The same with the momentum buffer carried as a displacement of the weights: times D, where a gradient goes with 1 / D."""

    def cycle(self, training: Training) -> None:
        """One Jacobi cycle by `Plan.rescale`, and the buffers by the exponents of the plan.

        Channel k moves by log(N_k / P_k) / 2p, which is the cycle of `Plan.step` in networks whose weights have one input and
        one output channel an entry.
        """
        plan = training.plan(self.c, self.options)
        log_scales = torch.nan_to_num(plan.channel_imbalance() / 2, nan=0.0, posinf=0.0, neginf=0.0)
        plan.rescale(log_scales)
        moves = torch.cat([log_scales, log_scales.new_zeros(1)])  # the id -1 stands for no variable
        for name, parameter in training.model.named_parameters():
            buffer = training.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                for coefficient, ids in plan.exponents.get(name, ()):
                    buffer.mul_(torch.exp(coefficient * moves[ids]))


@dataclass(frozen=True)
class BalancedOnce(Method):
    """Balanced to the least norm before training, and never again."""

    c: float | str = 1.0
    options: Options = ()

    def before_training(self, training: Training) -> None:
        """Balances; says so where it did not get there."""
        result = training.plan(self.c, self.options).balance()
        if not result.converged:
            raise fxenorm.RescaleError(f"{self.name}: the start could not be balanced: {result}")


def released(c: float, experiment: str) -> PlanStep:
    """The arm of the released commands: its options, and its momentum, which stays as it is in fully connected networks alone."""
    state = "reexpress" if experiment == "conv" else "keep"
    return PlanStep(f"ENorm, c={c:g}", norm="batchnorm", c=c, options=RELEASED, state=state)

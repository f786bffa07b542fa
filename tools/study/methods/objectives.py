"""The arms that balance another objective than the norm, at the start or every so many steps.

Gradients and Fisher information are those of some training images, drawn anew each time, by seed and step. The networks of a
stack are balanced one by one, each by its own masses: the logarithm of a sum over all of them would mix them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import fxenorm
from fxenorm import masses
from fxenorm.errors import OptionError
from fxenorm.objectives import Normalised, Term

from .method import Method

if TYPE_CHECKING:
    from ..training import Training

SAMPLES = 64
"""Training images of which gradients are taken."""
_DRAWS = 1_000_000
"""More seeds than there are: each seed and step draws its own images."""

Losses = Callable[[nn.Module], Tensor]
"""From a network, the loss of each of some images (samples,)."""


def _gradient(network: nn.Module, losses: Losses, x: Tensor) -> Term:
    """The squared norm of the gradient of the mean loss."""
    return masses.gradients(network, lambda network: losses(network).mean())


def _fisher(network: nn.Module, losses: Losses, x: Tensor) -> Term:
    """Even squared gradients of single images: the arithmetic mean of their sums over the geometric mean."""
    return Normalised(masses.fisher(network, losses))


def _path(network: nn.Module, losses: Losses, x: Tensor) -> Term:
    """The same of the path lifting's diagonal, which no data enter."""
    return Normalised(masses.path(network, x[:1]))


OBJECTIVES: dict[str, Callable[[nn.Module, Losses, Tensor], Term]] = {"gradient": _gradient, "fisher": _fisher, "path": _path}
"""By name, from a network, the losses of some images and these (samples, channels, rows, columns), what is to be small."""


@dataclass(frozen=True)
class Objective(Method):
    """Balanced by an objective before training, and every so many steps after that.

    Attributes:
        objective: a key of `OBJECTIVES`.
        every: number of steps between two times; 0: at the start alone.
        bound: the largest |log-scale| of a channel at one time; None: none.
        maximise: whether the objective is made large, within that bound.
    """

    objective: str = ""
    every: int = 0
    bound: float | None = None
    maximise: bool = False

    def before_training(self, training: Training) -> None:
        """Balances the start."""
        self._balance(training, 0)

    def after_step(self, training: Training, step: int) -> None:
        """Balances where the turn has come; the state of the optimizer follows."""
        if self.every and step % self.every == 0:
            self._balance(training, step)

    def _balance(self, training: Training, step: int) -> None:
        """Finds the log-scales of each network on a copy of it, and moves all at once."""
        whole = training.plan()
        found = [self._log_scales(training, network, seed, step) for network, seed in training.networks()]
        moves = _side_by_side(found, whole, training.plan_alone(next(training.networks())[0])) if training.stacked else found[0]
        whole.rescale(moves, training.optimizer if step else None)

    def _log_scales(self, training: Training, network: nn.Module, seed: int, step: int) -> Tensor:
        """The log-scales of one network, which is balanced; zeros where a run has no masses left, as one that diverges."""
        plan = training.plan_alone(network)
        x, classes = images_of(training, network, seed, step)

        def losses(model: nn.Module) -> Tensor:
            """Each image is a run of its own to `Training.losses`."""
            return training.losses(model(x)[:, None], x[:, None], classes[:, None])

        try:
            term = OBJECTIVES[self.objective](network, losses, x)
        except OptionError:
            if step == 0:
                raise
            return torch.zeros(plan.num_scales, dtype=torch.float64)
        return plan.balance(objective=term, maximise=self.maximise, max_log_scale=self.bound).log_scales


def images_of(training: Training, network: nn.Module, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The training images that a seed draws at a step, (samples, channels, rows, columns), and their classes (samples,)."""
    part, _ = training.task.parts(training.of[0].purpose)
    rows = torch.randperm(len(part), generator=torch.Generator().manual_seed(_DRAWS * step + seed))[:SAMPLES]
    like = next(network.parameters())
    return training.task.inputs(part.images[rows][None])[0].to(like), part.classes[rows].to(like.device)


def _side_by_side(found: list[Tensor], whole: fxenorm.Plan, alone: fxenorm.Plan) -> Tensor:
    """The log-scales of a stack, given those of its networks, which follow one another along the first axis of its weights."""
    moves = torch.zeros(whole.num_scales, dtype=torch.float64)
    for name, terms in alone.exponents.items():
        for (_, ids), (_, places) in zip(terms, whole.exponents[name], strict=True):
            for log_scales, where in zip(found, places.reshape(len(found), -1), strict=True):
                moves[where] = log_scales[ids.flatten()]
    return moves

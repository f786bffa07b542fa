"""One loop for all experiments: several runs that differ in rate and seed alone, as one stack, or a single run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxenorm

from .batches import Batches, steps_of
from .configuration import Configuration, StudyError
from .data.task import Task
from .measures import imbalances, norms, norms_before_batchnorm
from .networks.build import STACKABLE, put_weight_norm
from .networks.stack import Stack
from .optimizers import make_optimizer, set_rates
from .plans import plan_of
from .recorder import Recorder
from .starts import start

EVALUATED_AT_ONCE = 2048
"""Images in one evaluation batch."""
HARMLESS = 1e-3
"""The weights of a run that diverged: no zeros, by which a WeightNorm would divide."""


class Training:
    """The network or stack that is being trained, with its optimizer; methods work on this.

    The method's `before_training` sees one network a seed and no optimizer yet: what it does serves all rates.

    Args:
        of: the runs: equal but for rate and seed.
        task: their data.
        device: where to train.

    Attributes:
        model: the network, or the stack of as many networks as there are runs.
        optimizer: its optimizer.
        steps_an_epoch: number of batches in an epoch.
        stacked: whether `model` is a stack.
        dtype: of the weights.
        seeds: of each network in `model`.

    Raises:
        StudyError: several runs of a network that cannot be stacked, or runs that differ in more than rate and seed.
    """

    def __init__(self, of: Sequence[Configuration], task: Task, device: torch.device) -> None:
        first = of[0]
        if any(one.but(rate=first.rate, seed=first.seed) != first for one in of):
            raise StudyError("runs of one stack may differ in rate and seed alone")
        if len(of) > 1 and first.experiment not in STACKABLE:
            raise StudyError(f"{first.experiment} cannot be stacked: hand over one run at a time")
        self.of, self.task, self.stacked = tuple(of), task, len(of) > 1
        self.dtype = getattr(torch, first.dtype)
        self._plans: dict[Any, fxenorm.Plan] = {}
        self.seeds = sorted({one.seed for one in of})
        self.model = self._network(device)
        first.method.before_training(self)
        if isinstance(self.model, Stack):
            which = torch.tensor([self.seeds.index(one.seed) for one in of], dtype=torch.int64, device=device)
            self.model = self.model.select(which).to(device, self.dtype)
            self.seeds = [one.seed for one in of]
            self._plans = {}
        self.optimizer = make_optimizer(first, self.model)
        self.steps_an_epoch, self.steps = steps_of(first, task)

    def _network(self, device: torch.device) -> nn.Module:
        """The starting weights, one network a seed."""
        first, shown = self.of[0], self.task.train.images[:2]
        example = self.task.inputs(shown[None])[0]
        made = {one.seed: start(one, example, self.task.classes) for one in self.of}
        networks = [made[seed] for seed in sorted(made)]
        model: nn.Module = Stack(networks) if self.stacked else networks[0]
        if first.method.norm == "weightnorm" and not self.stacked:
            put_weight_norm(model)
        return model.to(device, self.dtype)

    @property
    def example(self) -> Tensor:
        """Inputs on which the model runs."""
        images = self.task.train.images[:3]
        count = self.model.count if isinstance(self.model, Stack) else 1
        x = self.task.inputs(images.expand(count, *images.shape)).to(next(self.model.parameters()).device, self.dtype)
        return x.flatten(2) if self.stacked else x[0]

    def networks(self) -> Iterator[tuple[nn.Module, int]]:
        """Yields a copy of each network with its seed, one after another."""
        for number, seed in enumerate(self.seeds):
            yield self.model.network(number) if isinstance(self.model, Stack) else copy.deepcopy(self.model), seed

    def plan(self, c: float | str = 1.0, options: Sequence[tuple[str, Any]] = ()) -> fxenorm.Plan:
        """The plan of the model under some options of `fxenorm.analyze`; it is made once."""
        key = (c, tuple(options))
        if key not in self._plans:
            self._plans[key] = plan_of(self.model, self.of[0], self.of[0].method.norm, self.example, c, options)
        return self._plans[key]

    def plan_alone(self, network: nn.Module) -> fxenorm.Plan:
        """The plan of one of `networks`."""
        like = next(network.parameters())
        example = self.task.inputs(self.task.train.images[None, :3])[0].to(like)
        return plan_of(network, self.of[0], self.of[0].method.norm, example)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (runs, batch, classes) of inputs (runs, batch, channels, rows, columns)."""
        return self.model(x.flatten(2)) if self.stacked else self.model(x[0])[None]

    def losses(self, outputs: Tensor, x: Tensor, classes: Tensor) -> Tensor:
        """The mean loss of each run (runs,): cross-entropy, or the mean square error of an auto-encoder."""
        if self.of[0].experiment == "autoencoder":
            return (outputs - x.flatten(2)).square().mean((1, 2))
        flat = nn.functional.cross_entropy(outputs.flatten(0, 1), classes.flatten(), reduction="none")
        return flat.view(classes.shape).mean(1)

    @property
    def floor(self) -> float:
        """The score of a run that diverged: that of guessing, or of an auto-encoder that answers with zeros."""
        if self.of[0].experiment == "autoencoder":
            _, scored = self.task.parts(self.of[0].purpose)
            return -float(self.task.inputs(scored.images[None]).square().mean())
        return 100.0 / self.task.classes

    @torch.no_grad()
    def evaluate(self) -> tuple[list[float], list[float]]:
        """The score and the mean loss of each run on the part that its purpose names; accuracy in %, or minus the loss."""
        _, scored = self.task.parts(self.of[0].purpose)
        device = next(self.model.parameters()).device
        right, total = torch.zeros(len(self.of)), torch.zeros(len(self.of))
        self.model.eval()
        for images, classes in zip(scored.images.split(EVALUATED_AT_ONCE), scored.classes.split(EVALUATED_AT_ONCE), strict=True):
            x = self.task.inputs(images[None].to(device)).to(self.dtype).expand(len(self.of), *[-1] * images.ndim)
            y = classes.to(device).expand(len(self.of), -1)
            outputs = self.forward(x)
            total += len(images) * self.losses(outputs, x, y).cpu()
            right += (outputs.argmax(2) == y).sum(1).cpu()
        self.model.train()
        losses = total / len(scored)
        scores = -losses if self.of[0].experiment == "autoencoder" else 100.0 * right / len(scored)
        return scores.tolist(), losses.tolist()


def train(
    of: Sequence[Configuration],
    task: Task,
    device: torch.device | None = None,
    tick: Callable[[int, Tensor], None] = lambda step, losses: None,
) -> list[dict[str, Any]]:
    """Trains and scores some runs.

    A run whose loss is not finite or above 1e4 stops: it is "diverged". No other run stops early.

    Args:
        of: runs that differ in rate and seed alone; several of them are a stack.
        task: their data.
        device: where; None: the CPU.
        tick: called after each step with its number, from 1, and the losses (runs,).

    Returns:
        A dict a run, as `recorder.Recorder.results` says.

    Raises:
        StudyError: as `Training`.
    """
    device = device or torch.device("cpu")
    training = Training(of, task, device)
    method, first = of[0].method, of[0]
    batches = Batches(of, task, device)
    recorder = Recorder(len(of), training.steps, training.floor)
    rates = torch.tensor([one.rate for one in of], dtype=torch.float64, device=device)
    training.model.train()
    for step in range(1, training.steps + 1):
        x, classes = batches.next()
        x = x.to(training.dtype)
        losses = training.losses(training.forward(x), x, classes)
        if recorder.lost(losses.detach()):
            if recorder.diverged.all():
                break
            rates = rates.masked_fill(recorder.diverged.to(device), 0.0)
            _stop(training, recorder.diverged.to(device))
            losses = training.losses(training.forward(x), x, classes)
        training.optimizer.zero_grad()
        losses.sum().backward()
        set_rates(training.optimizer, _at(rates, first, training, step))
        training.optimizer.step()
        method.after_step(training, step)
        if recorder.is_due(step):
            recorder.measure(step, norms(training), imbalances(training), norms_before_batchnorm(training))
        tick(step, losses.detach())
    if recorder.diverged.all():
        return recorder.results([math.nan] * len(of), [math.nan] * len(of))
    return recorder.results(*training.evaluate())


def _at(rates: Tensor, first: Configuration, training: Training, step: int) -> Tensor:
    """The rates of a step: falling to zero by step, or by epoch where the run counts epochs; or constant."""
    if first.schedule == "constant":
        return rates
    if first.steps is not None:
        return rates * (1 - (step - 1) / training.steps)
    return rates * (1 - (step - 1) // training.steps_an_epoch / first.epochs)


@torch.no_grad()
def _stop(training: Training, diverged: Tensor) -> None:
    """Takes runs of a stack out: harmless weights, no state; their rate is 0 from here on, and the others go on as they were."""
    for parameter in training.model.parameters():
        for value in (parameter, *training.optimizer.state.get(parameter, {}).values()):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.view(len(training.of), -1)[diverged] = HARMLESS if value is parameter else 0.0

"""A deep fully connected network on handwritten digits, trained with and without ``plan.step``.

The network is as deep as that of ENorm's fully connected experiment (Stock et al., ICLR 2019): 15 linear layers, ReLU, He
initialisation; weight decay 1e-3 and a learning rate that falls linearly to zero are that experiment's too. The data are
the 1797 digits that ship with scikit-learn. The learning rate is the best of plain SGD: ``--sweep`` prints what was tried.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fxenorm

DEPTH, WIDTH, BATCH, MOMENTUM, WEIGHT_DECAY = 15, 100, 64, 0.9, 1e-3
SWEEP = (0.002, 0.005, 0.01, 0.02, 0.05)
STARTS = {"as initialised": False, "rescaled at random": True}
ARMS = {"SGD": False, "SGD, plan.step": True}


@dataclass(frozen=True)
class Digits:
    """Standardised images (n, 64) and their classes (n,)."""

    train_images: Tensor
    train_classes: Tensor
    test_images: Tensor
    test_classes: Tensor


@dataclass(frozen=True)
class Run:
    """What one training run ended with; ``loss`` is the mean over the last epoch."""

    loss: float
    accuracy: float
    norm: float
    imbalance: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether the loss left the finite numbers."""
        return not math.isfinite(self.loss)


def load(seed: int, *, validation: bool = False) -> Digits:
    """Three quarters of the digits to train on, one to test on; with ``validation`` the test quarter stays unseen."""
    images, classes = load_digits(return_X_y=True)
    images, held_images, classes, held_classes = train_test_split(images, classes, stratify=classes, random_state=seed)
    if validation:
        images, held_images, classes, held_classes = train_test_split(images, classes, stratify=classes, random_state=seed)
    mean, spread = images.mean(), images.std()
    return Digits(
        torch.tensor((images - mean) / spread, dtype=torch.float32),
        torch.tensor(classes),
        torch.tensor((held_images - mean) / spread, dtype=torch.float32),
        torch.tensor(held_classes),
    )


def make_network(seed: int) -> nn.Sequential:
    """Fifteen linear layers, He initialisation, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [64, *[WIDTH] * (DEPTH - 1), 10]
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def rescale_at_random(plan: fxenorm.Plan, seed: int) -> None:
    """Another network of the same function: every hidden unit times a factor between 1/e and e."""
    generator = torch.Generator().manual_seed(seed)
    plan.rescale(2 * torch.rand(plan.num_scales, generator=generator) - 1)


def train(
    seed: int,
    *,
    rate: float,
    epochs: int,
    balanced: bool,
    rescaled: bool = False,
    validation: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Run:
    """One run; both arms of a seed see the same data in the same order and start from the same weights."""
    digits, network = load(seed, validation=validation), make_network(seed)
    plan = fxenorm.analyze(network)
    if rescaled:
        rescale_at_random(plan, seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    count = len(digits.train_images)
    steps = math.ceil(count / BATCH) * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order = torch.Generator().manual_seed(seed)
    start, loss = time.perf_counter(), math.nan
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(count, generator=order).split(BATCH):
            batch_loss = cross_entropy(network(digits.train_images[rows]), digits.train_classes[rows])
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            if balanced:
                plan.step(optimizer)
            schedule.step()
            total += batch_loss.item() * len(rows)
        loss = total / count
        tick()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        right = network(digits.test_images).argmax(1) == digits.test_classes
    return Run(loss, 100 * right.double().mean().item(), plan.norm().item(), plan.imbalance().item(), seconds)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and sample standard deviation of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "-"
    deviation = statistics.stdev(finite) if len(finite) > 1 else 0.0
    return f"{statistics.fmean(finite):.{digits}f} ± {deviation:.{digits}f}"


def progress_bar(console: Console) -> Progress:
    """One bar that counts epochs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def train_all(progress: Progress, task: TaskID, seeds: int, **settings: Any) -> list[Run]:
    """The same run for every seed; ``settings`` go to ``train``."""
    return [train(seed, tick=lambda: progress.advance(task), **settings) for seed in range(seeds)]


def compare(console: Console, seeds: int, rate: float, epochs: int) -> None:
    """Two starts, with and without ``plan.step``: the table of the demo."""
    title = f"Learning rate {rate:g}, epochs: {epochs}, seeds: {seeds}; mean ± standard deviation over the seeds"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("start, training", no_wrap=True)
    for name in ("training\nloss", "test\naccuracy, %", "weight\nnorm", "\nimbalance", "runs\ndiverged"):
        table.add_column(name, justify="right", no_wrap=True)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with progress_bar(console) as progress:
        task = progress.add_task("", total=4 * seeds * epochs)
        for start, rescaled in STARTS.items():
            table.add_row(start)
            for arm, balanced in ARMS.items():
                progress.update(task, description=f"{start}: {arm}")
                runs = train_all(progress, task, seeds, rate=rate, epochs=epochs, balanced=balanced, rescaled=rescaled)
                seconds[balanced] += [run.seconds for run in runs]
                finished = [run for run in runs if not run.diverged]
                table.add_row(
                    f"  {arm}",
                    spread([run.loss for run in finished], 3),
                    spread([run.accuracy for run in finished], 1),
                    spread([run.norm for run in finished], 1),
                    spread([run.imbalance for run in finished], 2),
                    f"{len(runs) - len(finished)} of {len(runs)}",
                )
            table.add_section()
    console.print(table)
    console.print(
        "Means are over the runs that did not diverge. Both starts are the same functions: in the second, each\n"
        "hidden unit is multiplied by a random factor between 1/e and e, and its outgoing weights are divided by it.\n"
        f"A run took {statistics.fmean(seconds[False]):.1f} s without and {statistics.fmean(seconds[True]):.1f} s with plan.step."
    )


def sweep(console: Console, seeds: int, epochs: int) -> None:
    """Learning rates against the accuracy on a validation part; the test part is not touched."""
    table = Table(title=f"Accuracy on a validation part, %; epochs: {epochs}, seeds: {seeds}; in brackets the runs that diverged")
    table.add_column("learning\nrate", justify="right")
    with progress_bar(console) as progress:
        task = progress.add_task("", total=4 * len(SWEEP) * seeds * epochs)
        rows: dict[float, list[str]] = {rate: [f"{rate:g}"] for rate in SWEEP}
        for start, rescaled in STARTS.items():
            for arm, balanced in ARMS.items():
                table.add_column(f"{start}:\n{arm}", justify="right", no_wrap=True)
                progress.update(task, description=f"{start}: {arm}")
                for rate, row in rows.items():
                    settings = {"rate": rate, "epochs": epochs, "balanced": balanced, "rescaled": rescaled}
                    runs = train_all(progress, task, seeds, **settings, validation=True)
                    row.append(f"{spread([r.accuracy for r in runs if not r.diverged], 1)} ({sum(r.diverged for r in runs)})")
    for row in rows.values():
        table.add_row(*row)
    console.print(table)


def show_plan(console: Console) -> None:
    """The plan, and that balancing a rescaled network leaves its outputs where they were."""
    network = make_network(0).double()
    images = load(0).test_images.double()
    plan = fxenorm.analyze(network)
    console.print(str(plan), markup=False, highlight=False, soft_wrap=True)
    rescale_at_random(plan, 0)
    with torch.no_grad():
        before = network(images)
        result = plan.balance()
        after = network(images)
    console.print()
    console.print("plan.balance() after a random rescaling, in float64:")
    console.print(str(result), markup=False, highlight=False, soft_wrap=True)
    console.print(f"largest change of an output: {(after - before).abs().max() / before.abs().max():.1e} of the largest output")
    console.print()


def main() -> None:
    """Parses the arguments and prints the plan and the table."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm (default 5)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each run (default 30)")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate at the start (default 0.02)")
    parser.add_argument("--sweep", action="store_true", help="print the learning rates tried, and stop")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.epochs < 1 or not arguments.rate > 0:
        parser.error("--seeds and --epochs must be at least 1 and --rate positive")
    torch.set_num_threads(1)  # the matrices are too small to share
    console = Console()
    if not console.is_terminal:
        console.width = 110
    if arguments.sweep:
        sweep(console, arguments.seeds, arguments.epochs)
    else:
        show_plan(console)
        compare(console, arguments.seeds, arguments.rate, arguments.epochs)


if __name__ == "__main__":
    main()

"""The batches of some runs: each seed has its own order, the same for every method and rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .configuration import Configuration
from .data.task import Task


def steps_of(of: Configuration, task: Task) -> tuple[int, int]:
    """The number of batches in an epoch and of steps in all; a smaller last batch is left out."""
    train, _ = task.parts(of.purpose)
    epoch = max(1, len(train) // of.batch)
    return epoch, of.epochs * epoch if of.steps is None else of.steps


class Batches:
    """Hands out the next batch of every run.

    Args:
        of: the runs.
        task: their data.
        device: to which batches are moved.
    """

    def __init__(self, of: Sequence[Configuration], task: Task, device: torch.device) -> None:
        self.task, self.batch = task, of[0].batch
        self.part, _ = task.parts(of[0].purpose)
        self.images, self.classes = self.part.images.to(device), self.part.classes.to(device)
        seeds = sorted({one.seed for one in of})
        self.random = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.place = torch.tensor([seeds.index(one.seed) for one in of], dtype=torch.int64, device=device)
        self.waiting: list[Tensor] = []

    def next(self) -> tuple[Tensor, Tensor]:
        """Inputs (runs, batch, *shape) and classes (runs, batch)."""
        if not self.waiting:
            count, size = len(self.part), min(self.batch, len(self.part))
            orders = torch.stack([torch.randperm(count, generator=source) for source in self.random])
            self.waiting = [rows for rows in orders.split(size, dim=1) if rows.shape[1] == size][::-1]
        rows = self.waiting.pop().to(self.images.device)
        inputs = self.task.inputs(self.images[rows], self.random)
        return inputs[self.place], self.classes[rows][self.place]

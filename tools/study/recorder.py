"""`Recorder`: the losses of some runs, and what is measured on the way."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LOST = 1e4
"""A loss above this has diverged."""
LAST = 100
"""Steps at the end over which the training loss is averaged."""
KEEP = 0.97
LEARNT = 0.5
"""A run has learnt where the running mean of its training loss, with the weight `KEEP` on its past, is below this."""
POINTS = 12
"""Times at which norms and imbalances are measured."""


class Recorder:
    """Keeps the numbers of some runs.

    Args:
        runs: their number.
        steps: of each.
        floor: the score of a run that diverged.
    """

    def __init__(self, runs: int, steps: int, floor: float) -> None:
        self.floor, self.steps = floor, steps
        self.history: list[Tensor] = []
        self.diverged = torch.zeros(runs, dtype=torch.bool)
        self.points: list[dict[str, Any]] = []

    def lost(self, losses: Tensor) -> bool:
        """Notes the losses of a step, (runs,), and says whether a run has diverged that had not before."""
        losses = losses.float().cpu()
        before = self.diverged
        self.diverged = before | ~(losses <= LOST)
        self.history.append(losses.masked_fill(self.diverged, math.nan))
        return bool((self.diverged & ~before).any())

    def is_due(self, step: int) -> bool:
        """Whether norms and imbalances are to be measured after this step."""
        return step == 1 or step == self.steps or step % max(1, self.steps // (POINTS - 2)) == 0

    def measure(self, step: int, norms: list[float], imbalances: list[float], before_batchnorm: list[list[float]]) -> None:
        """Notes what was measured after a step, by run; the last by run and layer, or empty."""
        self.points.append({"step": step, "norm": norms, "imbalance": imbalances, "before": before_batchnorm})

    def _steps_until_learnt(self, losses: Tensor) -> int | None:
        """The first step whose running mean is below `LEARNT`."""
        mean = float(losses[0])
        for step, loss in enumerate(losses.tolist(), 1):
            mean = KEEP * mean + (1 - KEEP) * loss
            if mean < LEARNT:
                return step
        return None

    def results(self, scores: list[float], losses: list[float]) -> list[dict[str, Any]]:
        """What is kept of each run.

        Args:
            scores: accuracy in %, or minus the mean square error, by run.
            losses: on the images that it is scored on, by run.

        Returns:
            By run: diverged; score; loss; train_loss, the mean of the last steps; steps, until it had learnt, or None; and, over
            time, curve_steps, curve_loss (the mean of the steps between two points), curve_norm, curve_imbalance and, last,
            norms_before_batchnorm by layer. Numbers of a run that diverged are None, but for its score.
        """
        history = torch.stack(self.history)
        found = []
        for run in range(len(self.diverged)):
            gone = bool(self.diverged[run]) or not math.isfinite(losses[run])
            marks = [point["step"] for point in self.points]
            spans = [history[low:high, run].mean().item() for low, high in zip([0, *marks][:-1], marks, strict=True)]
            before = self.points[-1]["before"] if self.points else []
            found.append(
                {
                    "diverged": gone,
                    "score": self.floor if gone else _short(scores[run]),
                    "loss": None if gone else _short(losses[run]),
                    "train_loss": None if gone else _short(history[-LAST:, run].mean().item()),
                    "steps": None if gone else self._steps_until_learnt(history[:, run]),
                    "curve_steps": marks,
                    "curve_loss": [_short(value) for value in spans],
                    "curve_norm": [_short(point["norm"][run]) for point in self.points],
                    "curve_imbalance": [_short(point["imbalance"][run]) for point in self.points],
                    "norms_before_batchnorm": [_short(value) for value in before[run]] if before else [],
                }
            )
        return found


def _short(value: float) -> float | None:
    """Six digits of a number; None for what is not finite, which JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None

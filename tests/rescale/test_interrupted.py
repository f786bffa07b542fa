"""A process killed between the optimizer's step and the rescaling leaves a checkpoint from which training goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.kernels.writes import signals_held_back

from ..helpers import generator, outputs, relative_difference

INPUTS = (torch.randn(8, 4, dtype=torch.float64, generator=generator(1)),)
STEPS, KILLED_AT, EVERY_SAVE = 12, 8, 3


class Run:
    """Training with AdamW, an attached plan, and checkpoints; the same whenever it is made."""

    def __init__(self, folder: Path, every: int = 1) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.plan = fxenorm.analyze(self.model)
        self.before_rescaling: Any = lambda step: None
        self.done = 0
        self.folder = folder
        # Called after the optimizer's step, before the hook that rescales.
        self.optimizer.register_step_post_hook(lambda *_: self.before_rescaling(self.done))
        self.handle = self.plan.attach(self.optimizer, every=every)

    def save(self, name: str) -> None:
        """Written beside and moved into place, as it should be."""
        parts = {key: getattr(self, key).state_dict() for key in ("model", "optimizer", "handle")}
        torch.save({**parts, "done": self.done}, self.folder / "new.pt")
        os.replace(self.folder / "new.pt", self.folder / name)

    def load(self, name: str) -> None:
        stored = torch.load(self.folder / name)
        for key in ("model", "optimizer", "handle"):
            getattr(self, key).load_state_dict(stored[key])
        self.done = stored["done"]

    def go(self, until: int) -> None:
        while self.done < until:
            self.model.zero_grad()
            target = torch.randn(8, 2, dtype=torch.float64, generator=generator(100 + self.done))
            (self.model(*INPUTS) - target).square().mean().backward()
            self.done += 1
            self.optimizer.step()
            if self.done % EVERY_SAVE == 0:
                self.save("last.pt")


def die(run: Run, step: int) -> None:
    """Between an optimizer's step and its rescaling: a checkpoint of that very moment, and the end."""
    if step == KILLED_AT:
        run.save("between.pt")
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, every: int) -> None:
    """What the killed process runs."""
    run = Run(Path(folder), every)
    run.before_rescaling = lambda step: die(run, step)
    run.go(STEPS)
    raise AssertionError("it should have been killed")


CHILD = "import sys; from tests.rescale.test_interrupted import main; main(sys.argv[1], int(sys.argv[2]))"


@pytest.mark.parametrize("every", [1, 2])
def test_training_goes_on_from_what_a_killed_process_left(tmp_path: Path, every: int) -> None:
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(every)], env=environment, capture_output=True, cwd=root
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()

    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole", every)
    at_the_kill: list[torch.Tensor] = []
    whole.before_rescaling = lambda step: at_the_kill.extend(outputs(whole.model, INPUTS) if step == KILLED_AT else [])
    whole.go(STEPS)

    def same_as_whole(run: Run) -> bool:
        return all(torch.equal(one, other) for one, other in zip(run.model.parameters(), whole.model.parameters(), strict=True))

    # From the last checkpoint: as if nothing had happened, bit for bit.
    resumed = Run(tmp_path, every)
    resumed.load("last.pt")
    assert resumed.done == resumed.handle.steps == KILLED_AT - KILLED_AT % EVERY_SAVE
    resumed.go(STEPS)
    assert same_as_whole(resumed)

    # From one that was written in between: the same function, and the rescaling that is missing comes after the next step.
    between = Run(tmp_path, every)
    between.load("between.pt")
    assert (between.done, between.handle.steps) == (KILLED_AT, KILLED_AT - 1)
    assert all(torch.equal(one, other) for one, other in zip(outputs(between.model, INPUTS), at_the_kill, strict=True))
    before = float(between.plan.imbalance())
    between.go(KILLED_AT + 1)
    assert float(between.plan.imbalance()) < before and between.handle.steps == KILLED_AT
    between.go(STEPS)
    assert all(parameter.isfinite().all() for parameter in between.model.parameters())
    assert not same_as_whole(between), "AdamW takes other steps from other weights"

    # Made up for at once, it is as if nothing had happened again.
    repaired = Run(tmp_path, every)
    repaired.load("between.pt")
    with pytest.warns(fxenorm.FxenormWarning, match="attached to this optimizer already"):
        repaired.plan.step(repaired.optimizer)
    repaired.handle.load_state_dict({**repaired.handle.state_dict(), "steps": repaired.done})
    assert relative_difference(outputs(repaired.model, INPUTS), at_the_kill) < 1e-10
    repaired.go(STEPS)
    assert same_as_whole(repaired)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signals")
def test_every_signal_that_comes_during_the_writes_is_handled_behind_them() -> None:
    """In the order in which they came, by the program's own handlers, also where the writes raise."""
    seen: list[int] = []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)

    numbers = (signal.SIGUSR2, signal.SIGUSR1)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        with signals_held_back():
            for number in (*numbers, numbers[0]):
                signal.raise_signal(number)
            assert not seen
        assert seen == [*numbers, numbers[0]]
        with pytest.raises(ValueError, match="in the middle"), signals_held_back():
            signal.raise_signal(numbers[1])
            raise ValueError("in the middle")
        assert seen == [*numbers, *numbers] and all(signal.getsignal(number) is handler for number in numbers)
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)

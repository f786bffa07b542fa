"""Real signals at random moments of training, rescaling and balancing: ``python -m tests.interrupted_for_real 500``."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass

import torch
from torch import nn

import fxenorm

__all__ = ["Interrupted", "interrupt"]


_CALLS_AFTER_A_SIGNAL = 50
"""One call is enough to see a signal; more do no harm."""


@dataclass(frozen=True)
class Interrupted:
    """What came of it.

    Attributes:
        signals: how many were sent.
        inside: how many of them ended a call of the plan.
        torn: after how many of them the outputs or the optimizer's state did not fit.
    """

    signals: int
    inside: int
    torn: int


def _fits(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, known: list[torch.Tensor]) -> bool:
    """Whether outputs, and momentum times weights, are what they were."""
    return all(
        torch.allclose(one, other, rtol=1e-6, atol=1e-9) for one, other in zip(_numbers(model, optimizer, x), known, strict=True)
    )


def _numbers(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> list[torch.Tensor]:
    """What no rescaling changes."""
    with torch.no_grad():
        moments = [state["exp_avg"] * parameter for parameter, state in optimizer.state.items()]
        return [model(x), *moments]


def interrupt(count: int, *, backend: str, seed: int) -> Interrupted:
    """Sends signals one after the other, each at a random moment of a loop of rescalings.

    Args:
        count: how many.
        backend: the plan's.
        seed: of the moments.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)
    layers = [layer for _ in range(8) for layer in (nn.Linear(48, 48), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Linear(48, 4)).double(), torch.randn(4, 48, dtype=torch.float64)
    plan = fxenorm.analyze(model, x, backend=backend)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    known = _numbers(model, optimizer, x)
    calls = [
        lambda: plan.step(optimizer),
        lambda: plan.step(optimizer, cycles=2),
        lambda: plan.rescale(0.3 * torch.randn(plan.num_scales, dtype=torch.float64), optimizer),
        lambda: plan.balance(optimizer, max_iterations=2),
    ]
    for call in calls:
        call()
    inside = torn = 0
    for number in range(count):
        kind = signal.SIGINT if number % 2 else signal.SIGALRM
        thread = threading.Timer(draw.uniform(0.0, 0.03), os.kill, (os.getpid(), kind))
        ended = False
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            thread.start()
            late = 0
            # Python drops an exception that a handler raises while an object is being deleted: such a signal is not waited for.
            while late < _CALLS_AFTER_A_SIGNAL:
                late += not thread.is_alive()
                ended = True
                draw.choice(calls)()
                ended = False
                time.sleep(0)
        except KeyboardInterrupt:
            inside += ended
        finally:
            signal.signal(signal.SIGALRM, before)
            thread.join()
            torch.set_grad_enabled(True)  # a signal inside torch's own no_grad may leave it off
        torn += not _fits(model, optimizer, x, known)
    return Interrupted(count, inside, torn)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in ("eager", "compiled"):
        print(chosen, interrupt(int(sys.argv[1]), backend=chosen, seed=1))

"""What `balance` needs beside the model: no more than the weights' own size, whatever p and the layers are."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fxenorm
from fxenorm.kernels import parts

from ..releases import RELEASE


class Looped(nn.Module):
    """Layers that read and write one stream, so that the diagonal of each carries one channel twice."""

    def __init__(self, width: int = 640) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width, bias=False), nn.Linear(width, 8, bias=False)
        self.inner = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """The stream collects what each layer makes of it."""
        x = self.first(x).relu()
        for layer in self.inner:
            x = x + layer(x).relu()
        return self.last(x)


class Gated(nn.Module):
    """A layer whose columns each carry the product of two others' channels."""

    def __init__(self, width: int = 1000) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, width, bias=False), nn.Linear(8, width, bias=False)
        self.join, self.last = nn.Linear(width, width, bias=False), nn.Linear(width, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The product of two branches."""
        return self.last(self.join(self.one(x).relu() * self.two(x)).relu())


def dense() -> nn.Module:
    """Matrices in which every entry is one weight."""
    return nn.Sequential(
        nn.Linear(8, 900, bias=False), nn.ReLU(), nn.Linear(900, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 8, bias=False)
    )


def grouped() -> nn.Module:
    """Grouped convolutions of 1 x 1 and 3 x 3."""
    return nn.Sequential(
        nn.Conv2d(8, 768, 1, bias=False), nn.ReLU(),
        nn.Conv2d(768, 768, 1, groups=2, bias=False), nn.ReLU(),
        nn.Conv2d(768, 768, 3, groups=8, bias=False), nn.ReLU(),
        nn.Conv2d(768, 8, 1, bias=False),
    )  # fmt: skip


def flattened() -> nn.Module:
    """A linear layer whose inputs share a variable by channel."""
    return nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 25, 1600), nn.ReLU(), nn.Linear(1600, 8))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (dense, (2, 8)),
    "looped": (Looped, (2, 8)),
    "gated": (Gated, (2, 8)),
    "grouped": (grouped, (2, 8, 3, 3)),
    "flattened": (flattened, (2, 8, 5, 5)),
}


def most_allocated(work: Callable[[], object]) -> int:
    """Bytes that some work has allocated at most at one time."""
    # The list of events that torch makes for people takes four times as long as the work, and nothing here reads it.
    with (
        patch.object(torch.autograd.profiler.profile, "_parse_kineto_results", lambda self, *args, **kwargs: []),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler,
    ):
        work()
    sizes = []
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    total = most = 0
    for _, size in sorted(sizes):
        total += size
        most = max(most, total)
    return most


def test_allocations_are_seen() -> None:
    """Control: what one operator holds inside counts too."""
    weight = torch.randn(1000, 1000)
    assert 8e6 <= most_allocated(lambda: weight.double().sum()) < 9e6
    assert most_allocated(lambda: weight.double().logsumexp(1)) >= 16e6


@pytest.mark.parametrize(
    ("p", "kind"),
    [
        (2.0, torch.float32), (2.0, torch.float64), (2.0, torch.bfloat16),
        (12.0, torch.float32), (12.0, torch.float64),
        (math.inf, torch.float32),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", MODELS)
def test_balance_allocates_no_more_than_the_weights(
    name: str, p: float, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small parts for small models: what is taken at a time is no part of the question.
    monkeypatch.setattr(parts, "_PART_ON_CPU", 1 << 14)
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build()
    plan = fxenorm.analyze(model, torch.zeros(shape), p=p, modes="eval")
    model.to(kind)
    # Imports, tables of addresses and ids are made once a plan.
    plan.balance(max_iterations=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.randn(parameter.shape[0]).exp().reshape(-1, *[1] * (parameter.ndim - 1)).to(kind))
    results = []
    weights = sum(parameter.numel() * max(4, parameter.element_size()) for parameter in model.parameters())
    # Parts that stay in cache and vectors over the channels do not grow with the weights.
    slack = 2 << 20
    # The profiler of torch 2.6 holds ten kilobytes an event, and there are 30,000 in an iteration.
    iterations = 10 if RELEASE >= (2, 7) else 3
    most = most_allocated(lambda: results.append(plan.balance(max_iterations=iterations)))
    assert most <= weights + slack, f"{most / 1e6:.1f} MB for {weights / 1e6:.1f} MB of weights"
    assert results[0].iterations > (0 if math.isinf(p) else 1), "one iteration is all of p = inf, and more of the others"

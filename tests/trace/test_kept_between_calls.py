"""What a model keeps from one call to the next: tensors that are filled after the analysis, and those that forward writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxenorm

from ..helpers import TOLERANCE, draw_log_scales, generator, randomise, relative_difference
from ..zoo_base import Net

INPUTS = torch.randn(7, 4, dtype=torch.float64, generator=generator(2))

FILLED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "added": (lambda h, late: h + late, 0),
    "its double subtracted": (lambda h, late: h - (late * 2)[None], 0),
    "the greater of both": (torch.maximum, 0),
    "the least allowed": (lambda h, late: torch.clamp(h, min=late), 0),
    "instead of what is negative": (lambda h, late: torch.where(h > 0, h, late), 0),
    "compared with": (lambda h, late: torch.where(h > late, h, 0.5 * h), 0),
    "summed up before": (lambda h, late: torch.cat([late.expand_as(h), h], 1).cumsum(1)[:, 6:], 0),
    "multiplied": (lambda h, late: h * late, 6),
}
"""How a tensor that is zero at first meets six channels, and how many of these are free."""


@pytest.mark.parametrize("kept_as", ["buffer", "attribute"])
@pytest.mark.parametrize("use", FILLED)
def test_a_tensor_that_is_zero_at_the_analysis_may_be_filled_later(use: str, kept_as: str) -> None:
    function, expected = FILLED[use]
    model = randomise(Net(lambda m, x: m.b(function(m.a(x), m.late)), a=nn.Linear(4, 6), b=nn.Linear(6, 3)).double())
    zeros = torch.zeros(6, dtype=torch.float64)
    model.register_buffer("late", zeros) if kept_as == "buffer" else setattr(model, "late", zeros)
    plan = fxenorm.analyze(model, INPUTS)
    assert plan.num_scales == expected
    with torch.no_grad():
        model.late += torch.randn(6, dtype=torch.float64, generator=generator(3))
        before = model(INPUTS)
        plan.rescale(draw_log_scales(plan))
        assert relative_difference([before], [model(INPUTS)]) <= TOLERANCE


def _clamped(m: Net, x: Tensor) -> None:
    m.a.weight.clamp_(-0.5, 0.5)


def _moved(m: Net, x: Tensor) -> None:
    m.a.weight[1:].add_(0.1 * x.mean(0))


def _replaced(m: Net, x: Tensor) -> None:
    m.a.bias.copy_(x[:6, 0])


def _mean_kept(m: Net, x: Tensor) -> None:
    m.kept.lerp_(m.a(x).mean(0), 0.5)


def _part_kept(m: Net, x: Tensor) -> None:
    m.kept[2:5] = m.a(x)[0, 2:5]


WRITTEN: dict[str, tuple[Callable[[Net, Tensor], None], int]] = {
    "a weight, clamped": (_clamped, 0),
    "rows of a weight, moved": (_moved, 0),
    "a bias, replaced": (_replaced, 0),
    "a buffer, by an average of channels": (_mean_kept, 0),
    "a buffer, by three channels": (_part_kept, 0),
}
"""What forward writes, and how many of six channels are free; the buffer is added to them at the next call."""


@pytest.mark.parametrize("first", ["written before it is read", "read before it is written"])
@pytest.mark.parametrize("what", WRITTEN)
def test_what_forward_writes_is_the_same_over_two_calls(what: str, first: str) -> None:
    write, expected = WRITTEN[what]

    def forward(m: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            if first.startswith("written"):
                write(m, x)
        y = m.b((m.a(x) + m.kept).relu())
        with torch.no_grad():
            if first.startswith("read"):
                write(m, x)
        return y

    def built() -> Net:
        model = Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3))
        model.register_buffer("kept", torch.zeros(6))
        return randomise(model.double(), seed=1)  # type: ignore[return-value]

    model, rescaled = built(), built()
    plan = fxenorm.analyze(rescaled, INPUTS)
    assert plan.num_scales == expected
    plan.rescale(draw_log_scales(plan))
    with torch.no_grad():
        for k in range(2):
            assert relative_difference([model(INPUTS + k)], [rescaled(INPUTS + k)]) <= TOLERANCE

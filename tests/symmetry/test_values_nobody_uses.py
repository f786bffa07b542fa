"""A value that no output needs holds nothing; one that is checked, kept or read by Python does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxenorm

from ..helpers import TOLERANCE, randomise, soundness_error
from ..zoo_base import Net

KEPT: list[torch.Tensor] = []


def _written(h: torch.Tensor) -> None:
    unused = h.clone()
    unused[:, 0].add_(1.0)


def _written_after_its_reader(h: torch.Tensor) -> torch.Tensor:
    copy = h.clone()
    result = copy * 1
    copy.add_(1.0)
    return result


def _written_before_its_reader(h: torch.Tensor) -> torch.Tensor:
    copy = h.clone()
    view = copy.view(-1)
    copy.add_(1.0)
    return view.view(h.shape)


UNUSED: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "a barrier": lambda h: h.sigmoid(),
    "a chain of operators": lambda h: (h.sigmoid() + 1).sum(),
    "an operator of which one overload has a rule": lambda h: h.sigmoid().pow(2),
    "one of several results": lambda h: h.sigmoid().chunk(2, 1)[0],
    "a tie": lambda h: h @ h.mT + h.sum(),
    "a write": _written,
    "a write behind the last reader": _written_after_its_reader,
}
USED: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "checked": lambda h: torch._assert_async(h.amax() < 1e9),
    "kept outside": lambda h: KEPT.append(h.sigmoid()),
    "read by Python": lambda h: h.sigmoid().sum().item(),  # type: ignore[return-value]
    "a write before a reader": _written_before_its_reader,
}


def _network(use: Callable[[torch.Tensor], torch.Tensor | None]) -> Net:
    """Two layers with six channels between them, which `use` sees; a tensor that it returns is handed on."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = m.a(x)
        passed = use(h)
        return m.b(passed if isinstance(passed, torch.Tensor) and passed.shape == h.shape and use in _HANDED_ON else h)

    return Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3))


_HANDED_ON = (_written_after_its_reader, _written_before_its_reader)


@pytest.mark.parametrize("name", UNUSED)
def test_a_value_that_nothing_uses_holds_nothing(name: str) -> None:
    inputs = (torch.randn(5, 4, dtype=torch.float64),)
    model = randomise(_network(UNUSED[name]).double())
    plan = fxenorm.analyze(model, inputs)
    assert plan.num_scales == 6 and plan.barriers == ()
    assert max(soundness_error(model, plan, inputs, mode) for mode in ("eval", "train")) <= TOLERANCE


@pytest.mark.parametrize("name", USED)
def test_a_value_with_another_use_is_held(name: str) -> None:
    try:
        plan = fxenorm.analyze(_network(USED[name]), (torch.randn(5, 4, dtype=torch.float32),))
    finally:
        KEPT.clear()
    assert plan.num_scales == 0 and plan.barriers


def test_a_layer_whose_output_nothing_uses_stays() -> None:
    """It has no scale, like a parameter that forward never reads."""
    model = Net(lambda m, x: (m.unused(x), m.a(x))[1], a=nn.Linear(4, 3), unused=nn.Linear(4, 7))
    plan = fxenorm.analyze(model, (torch.randn(5, 4, dtype=torch.float32),))
    assert plan.num_scales == 0 and not plan.exponents

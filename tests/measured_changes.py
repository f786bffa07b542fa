"""How much a random rescaling changes a model's outputs, and whether rounding explains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .helpers import TOLERANCE, draw_log_scales, generator, relative_difference, tensors

_ROUNDINGS = 100
"""A rescaling rounds the weights and all values behind them: up to this many times the change of one rounding of the weights."""


def measured_changes(
    model: nn.Module, plan: Any, modes: Sequence[str], run: Callable[[str], list[Tensor]]
) -> tuple[dict[str, float], float]:
    """By mode, the relative change of float64 outputs under a rescaling; and where rounding explains more, how much that was.

    The rescaling is random. Where it changes outputs by more than the tolerance and one rounding of each weight changes them as
    much (up to a factor of a hundred), it is one by random powers of two, which round nothing. The weights stay rescaled.
    """
    errors = _changes(modes, run, lambda: plan.rescale(draw_log_scales(plan)))
    largest = max(errors.values())
    if largest <= TOLERANCE:
        return errors, math.nan
    once = _changes(modes, run, lambda: _round_once(model, plan))
    if not all(errors[mode] <= max(TOLERANCE, _ROUNDINGS * once[mode]) for mode in modes):
        return errors, math.nan
    powers = (2 * draw_log_scales(plan)).round() * math.log(2)
    return _changes(modes, run, lambda: plan.rescale(powers)), largest


def _changes(modes: Sequence[str], run: Callable[[str], list[Tensor]], change: Callable[[], None]) -> dict[str, float]:
    """By mode, the relative change of the outputs by what `change` does to the model."""
    before = {mode: run(mode) for mode in modes}
    change()
    return {mode: relative_difference(before[mode], run(mode)) for mode in modes}


@torch.no_grad()
def _round_once(model: nn.Module, plan: Any) -> None:
    """Moves every entry of what the plan moves up or down by the spacing of float64."""
    random = generator(2)
    held = tensors(model)
    for name in plan.exponents:
        up = torch.randint(0, 2, held[name].shape, generator=random, dtype=torch.int8)
        held[name].mul_(1 + torch.finfo(torch.float64).eps * (2 * up - 1).double())

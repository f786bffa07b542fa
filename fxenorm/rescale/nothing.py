"""Why a plan moves nothing: no scale is free, all of them are held, or the model is quantised already."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..analysis.held import FrozenChoice, held_by_group
from ..symmetry.symmetry import Symmetry
from ..text.describe import barrier_summaries, output_lines, plural
from .rescaler import Rescaler

__all__ = ["QUANTISED", "is_quantised", "say_if_nothing_moves", "why_no_scale"]

QUANTISED = (
    "the model is quantised already, and no rescaling passes the rounding of its weights or activations: analyse and balance the "
    "model before it is quantised"
)

_PLACES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.quantization.", "torchao.", "bitsandbytes.")
_OPERATORS = ("quantize_per", "dequantize_per", "choose_qparams", "fake_quantize", "access_subclass_inner_tensor")
_MOST = 4
"""Operators that a warning lists: it stays one sentence, and ``print(plan)`` says the rest."""


def say_if_nothing_moves(rescaler: Rescaler, call: str, flags: FrozenChoice = "auto") -> None:
    """Warns at a plan's first call, once, where its graph and its flags leave nothing to move; reads no weight."""
    warnings, analysis = rescaler.warnings, rescaler.analysis
    if warnings.looked:
        return
    warnings.looked = True
    if not rescaler.num_scales:
        warnings.nothing(call, why_no_scale(rescaler.model, analysis.symmetry))
        return
    weights = rescaler.open(flags)
    left = weights.movable()
    if left.held.all():
        held = held_by_group(analysis.groups, left.reasons, rescaler.num_scales, left.equations, weights.frozen)
        warnings.nothing_moves(call, held, rescaler.num_scales)


def why_no_scale(model: nn.Module, symmetry: Symmetry) -> str:
    """Returns in words the reasons why every channel of a model is held."""
    if is_quantised(model, symmetry):
        return QUANTISED
    reasons = [output_lines(symmetry.fixed_by_output, symmetry.outputs)[0]] if symmetry.fixed_by_output else []
    summaries = barrier_summaries(symmetry.barriers)
    for summary in summaries[:_MOST]:
        unknown = ", which has no scale rule" if not summary.known else ""
        reasons.append(f"fixed by {summary.operator}{unknown}: {plural(summary.variables, 'channel')}")
    if len(summaries) > _MOST:
        reasons.append(f"and {len(summaries) - _MOST} more operators")
    found = "; ".join(reasons) or "no parameter multiplies another layer's output"
    return f"no channel is free, {found}. print(plan) says more"


def is_quantised(model: nn.Module, symmetry: Symmetry | None = None) -> bool:
    """Whether a model holds quantised layers or weights, or its graph rounds to integers."""
    if any(_from(type(module)) for module in model.modules()):
        return True
    if any(_is_quantised(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return True
    operators = [] if symmetry is None else [barrier.operator for barrier in symmetry.barriers]
    return any(word in operator for operator in operators for word in _OPERATORS)


def _from(kind: type) -> bool:
    """Whether a class, or one that it derives from, comes from a library for quantisation."""
    return any(f"{base.__module__}.".startswith(_PLACES) for base in kind.__mro__)


def _is_quantised(tensor: Any) -> bool:
    """Whether a tensor stands for integers."""
    return bool(tensor.is_quantized) or _from(type(tensor))

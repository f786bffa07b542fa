"""The arguments of a call as rules read them: operands that may be plain numbers, and axes that may be negative."""

from __future__ import annotations

from ..field import AnyField, ParameterView, ScaleField
from .call import Call, Field, is_floating

__all__ = ["axis_of", "operand", "plain_number"]


def operand(call: Call, name: str) -> Field:
    """Returns the field of an argument that may be a Python number or an integer tensor."""
    value = call[name]
    if isinstance(value, (ScaleField, AnyField, ParameterView)):
        return value if is_floating(call.fakes[name]) else ScaleField(call.shape(name))
    return AnyField(()) if value == 0 else ScaleField(())


def plain_number(call: Call, name: str) -> float | None:
    """Returns the number that an argument is, as Python's number or in every entry of a tensor; None where that is not known."""
    value = call[name]
    if isinstance(value, (int, float)):
        return float(value)
    return call.numbers(name) if isinstance(value, (ScaleField, AnyField)) else None


def axis_of(call: Call, value: int, rank: int | None = None) -> int:
    """Returns the axis `value`, which may be negative, as a position from 0; `rank`: of the tensor, by default that of `self`."""
    rank = len(call.shape("self")) if rank is None else rank
    return value % max(rank, 1)

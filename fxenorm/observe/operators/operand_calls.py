"""The activations that functions multiply by a model's parameters, where no layer is called for these."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..observed_weight import Layout
from .layer_calls import LayerCall, LayerCalls

__all__ = ["OperandCalls", "layout_of"]


class OperandCalls(LayerCalls):  # type: ignore[no-untyped-call]
    """Hands on the calls of functions on parameters, with the number of each among those on the same one.

    Args:
        note: gets the call and its number; returns the activation that stands in for its own, None: this.
    """

    def __init__(self, note: Callable[[LayerCall, int], Tensor | None]) -> None:
        super().__init__(whole=True)
        self._note = note

    def met(self, call: LayerCall) -> tuple[Tensor, Tensor] | None:
        """Hands on a call, unless it is a layer's own or its weight is computed."""
        if call.called or not call.parameter:
            return None
        other = self._note(call, self._number(call.parameter))
        return None if other is None else (other, call.weight)


def layout_of(call: LayerCall, parameter: Tensor) -> Layout | None:
    """Returns which axes of a parameter are those of the channels, as a call reads it; None: no single ones are.

    The axes are told by their strides, which views leave as they are. Matrices that are stacked along the parameter's first axes
    have negative axes.
    """
    weight, (output, inputs) = call.weight, (call.operands.output, call.operands.input)
    if output is None or inputs is None:
        return None
    if "conv" in call.operator:
        groups = call.groups if output == 1 else 1
        return (output, inputs, groups) if weight.shape == parameter.shape else None
    written, read = (_axis_of(weight, axis, parameter) for axis in (output, inputs))
    if written is None or read is None or written == read or min(written, read) < parameter.ndim - 2:
        return None
    first = 0 if parameter.ndim == 2 else parameter.ndim
    return written - first, read - first, 1


def _axis_of(weight: Tensor, axis: int, parameter: Tensor) -> int | None:
    """Returns the axis of a parameter that an axis of a view of it runs along, the last where several have its stride."""
    size, stride = weight.shape[axis], weight.stride(axis)
    fitting = [one for one in range(parameter.ndim) if parameter.stride(one) == stride and parameter.shape[one] >= size]
    return fitting[-1] if fitting else None

"""Runs of a model that see every linear layer and convolution at its operator, to observe its input or to round it."""

from __future__ import annotations

from torch import Tensor

from ..bits import Bits
from ..observe.operators.layer_calls import LayerCall, LayerCalls
from .rounding import ActivationRange, rounded_weight

__all__ = ["Ranges", "RoundedRun"]

Ranges = dict[tuple[str, int], ActivationRange]
"""The range of the input of a layer, by the layer's name and the number of its call in one forward pass."""


class RoundedRun(LayerCalls):  # type: ignore[no-untyped-call]
    """Sees the layers of a model while it runs inside ``with run.on(model):``, and rounds their weights and inputs.

    Without bits it rounds nothing and notes the ranges of the inputs. An input that has no range yet is rounded by its own.

    Args:
        bits: of the quantiser; None: ranges are noted.
        ranges: those of the inputs.

    Attributes:
        ranges: those that were given or noted.
        layers: the names of the layers that were met, in their order.
    """

    def __init__(self, bits: Bits | None = None, ranges: Ranges | None = None) -> None:
        super().__init__()
        self.ranges: Ranges = {} if ranges is None else ranges
        self.layers: dict[str, None] = {}
        self._bits = bits

    def met(self, call: LayerCall) -> tuple[Tensor, Tensor] | None:
        """Returns the operands of a layer, rounded where there are bits for it."""
        self.layers[call.layer] = None
        place = (call.layer, self._number(call.layer))
        if self._bits is None:
            found = ActivationRange.of(call.activation)
            self.ranges[place].add(found) if place in self.ranges else self.ranges.update({place: found})
            return None
        bits = self._bits.of(call.layer)
        if bits is None:
            return None
        known = self.ranges.get(place) or ActivationRange.of(call.activation)
        return known.rounded(call.activation, bits), _rounded_matrices(call, bits)


def _rounded_matrices(call: LayerCall, bits: Bits) -> Tensor:
    """Returns a rounded weight; of a stack of matrices each for itself."""
    weight, operands = call.weight, call.operands
    if operands.output is None or operands.input is None:
        return weight
    stack = weight[None] if operands.is_layer or weight.ndim == 2 else weight.flatten(0, -3)
    axes = (operands.output, operands.input) if operands.is_layer else (operands.output % 2, operands.input % 2)
    groups = call.groups if operands.is_layer and operands.output == 1 else 1
    return rounded_weight(stack, bits, *axes, groups).reshape(weight.shape)

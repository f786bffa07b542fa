"""The operators at which a layer's weight is read: linear layers, convolutions and matrix products, whatever calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .einsum_letters import read_equation

__all__ = ["COPIES", "READERS", "TAKEN_APART", "Operands", "factors", "operands_of", "with_factors"]


class Operands(NamedTuple):
    """Where an operator has an activation and the weight that it is multiplied by.

    Attributes:
        activation, weight: their places among the operator's `factors`.
        axis: the activation's axis that is summed, counted from the end; the last of several.
        output, input: the weight's axes of the output channels and of the input channels; None where these are several.
        is_layer: whether the weight is one whatever it was made from; else only where it is a parameter.
    """

    activation: int
    weight: int
    axis: int
    output: int | None
    input: int | None
    is_layer: bool = True


TAKEN_APART = "einsum"
"""The operator whose factors stand in a list."""

COPIES = frozenset({"index", "index_select", "clone", "contiguous", "to", "_to_copy", "type_as", "reshape", "flatten"})
"""Operators whose result is a weight where their first operand is: the experts of some tokens, a copy in another type."""

_PRODUCTS = {"matmul": 0, "mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1}
"""By name, the place of the first factor; the second comes after it."""

_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "convolution", "_convolution", *_TRANSPOSED})
_IS_TRANSPOSED = 6
"""The place of the argument of aten.convolution that says whether it is a transposed one."""

READERS = frozenset({"linear", "_grouped_mm", "inner", "tensordot", TAKEN_APART, *_CONVOLUTIONS, *_PRODUCTS})
"""All of them."""


def factors(operator: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """Returns the arguments among which activation and weight stand."""
    if operator == TAKEN_APART:
        return arguments[1] if len(arguments) > 1 and isinstance(arguments[1], (list, tuple)) else ()
    return arguments


def with_factors(operator: str, arguments: Sequence[Any], changed: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the arguments of an operator with other `factors`."""
    return (arguments[0], list(changed), *arguments[2:]) if operator == TAKEN_APART else tuple(changed)


def operands_of(operator: str, arguments: Sequence[Any]) -> tuple[Operands, ...]:
    """Returns the places that an activation and a weight of two or more axes can have in a call; () where there are none.

    Args:
        operator: its name, as "linear".
        arguments: those by position; tensors without values do.

    Example:
        >>> import torch
        >>> x, w = torch.ones(2, 3), torch.ones(4, 3)
        >>> operands_of("linear", (x, w))
        (Operands(activation=0, weight=1, axis=-1, output=0, input=1, is_layer=True),)
        >>> operands_of("einsum", ("bi,oi->bo", [x, w]))[0]
        Operands(activation=0, weight=1, axis=-1, output=0, input=1, is_layer=False)
    """
    given = factors(operator, arguments)
    return tuple(one for one in _candidates(operator, arguments) if _are_matrices(given, one))


def _are_matrices(given: Sequence[Any], one: Operands) -> bool:
    """Whether there are floating-point tensors with entries at both places, and the weight has two axes or more."""
    if len(given) <= max(one.activation, one.weight):
        return False
    activation, weight = given[one.activation], given[one.weight]
    tensors = all(isinstance(part, Tensor) and part.is_floating_point() for part in (activation, weight))
    return tensors and activation.ndim > 0 and weight.ndim > 1


def _candidates(operator: str, arguments: Sequence[Any]) -> Sequence[Operands]:
    """Returns the places by the operator's law."""
    if operator == "linear":
        return (Operands(0, 1, -1, 0, 1),)
    if operator in _CONVOLUTIONS:
        turned = int(operator in _TRANSPOSED or ("convolution" in operator and arguments[_IS_TRANSPOSED]))
        return (Operands(0, 1, 1 - _axes(arguments, 1), turned, 1 - turned),)
    if operator in _PRODUCTS:
        first = _PRODUCTS[operator]
        second = -2 if _axes(arguments, first + 1) > 1 else -1
        return Operands(first, first + 1, -1, -1, -2, False), Operands(first + 1, first, second, -2, -1, False)
    if operator == "_grouped_mm":
        return (Operands(0, 1, -1, -1, -2, False),)
    if operator == "inner":
        return Operands(0, 1, -1, -2, -1, False), Operands(1, 0, -1, -2, -1, False)
    if operator == "tensordot":
        return _of_tensordot(arguments)
    return _of_einsum(arguments) if operator == TAKEN_APART else ()


def _axes(arguments: Sequence[Any], place: int) -> int:
    """Returns the number of axes of an argument, 0 where it is no tensor."""
    return arguments[place].ndim if len(arguments) > place and isinstance(arguments[place], Tensor) else 0


def _of_tensordot(arguments: Sequence[Any]) -> Sequence[Operands]:
    """Returns the places in a tensordot that sums one axis of each, of which one is a matrix."""
    if len(arguments) < 4 or len(arguments[2]) != 1 or len(arguments[3]) != 1:
        return ()
    ranks = [_axes(arguments, 0), _axes(arguments, 1)]
    summed = [int(axes[0]) % rank if rank else 0 for axes, rank in zip(arguments[2:4], ranks, strict=True)]
    return [
        Operands(one, other, summed[one] - ranks[one], 1 - summed[other], summed[other], False)
        for one, other in ((0, 1), (1, 0))
        if ranks[other] == 2
    ]


def _of_einsum(arguments: Sequence[Any]) -> Sequence[Operands]:
    """Returns the places in an einsum of two tensors that sums an axis of both."""
    given = factors(TAKEN_APART, arguments)
    if len(given) != 2 or not all(isinstance(one, Tensor) for one in given) or not isinstance(arguments[0], str):
        return ()
    letters, out = read_equation(arguments[0], [one.ndim for one in given])
    summed = [letter for letter in dict.fromkeys(letters[0]) if letter in letters[1] and letter not in out]
    found = []
    for one, other in ((0, 1), (1, 0)) if summed else ():
        written = [letter for letter in letters[other] if letter in out and letter not in letters[one]]
        output = letters[other].index(written[0]) if len(written) == 1 else None
        inputs = letters[other].index(summed[0]) if len(summed) == 1 else None
        axis = max(map(letters[one].index, summed)) - len(letters[one])
        found.append(Operands(one, other, axis, output, inputs, False))
    return found

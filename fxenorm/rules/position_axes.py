"""The axes along which an operator of several tensors does the same at each position, whatever the others hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .einsum_letters import read_equation

__all__ = ["ENTRYWISE", "MOVING", "Axes", "axes_of_call"]

Axes = tuple[int, ...]

ENTRYWISE = frozenset({"aten::add", "aten::sub", "aten::mul", "aten::div", "aten::maximum", "aten::minimum", "aten::multiply"})
"""Operators of tensors that are broadcast against each other."""

MOVING = frozenset(
    {
        "aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::unsqueeze",
        "aten::squeeze", "aten::transpose", "aten::permute", "aten::t", "aten::mT", "aten::movedim", "aten::expand",
        "aten::slice", "aten::select", "aten::narrow", "aten::chunk", "aten::split", "aten::split_with_sizes", "aten::unbind",
        "aten::alias", "aten::clone", "aten::contiguous", "aten::detach", "aten::to", "aten::_to_copy", "aten::dropout",
        "aten::relu", "aten::leaky_relu", "aten::abs", "aten::neg", "aten::square", "aten::sqrt", "aten::sum", "aten::mean",
        "aten::amax", "aten::amin", "aten::linalg_vector_norm",
    }
)  # fmt: skip
"""Operators of one tensor of which a field shows where each position goes."""


def axes_of_call(
    operator: str, shapes: Mapping[str, Any], axes: Mapping[str, Any], output: Sequence[int], equation: str = ""
) -> tuple[dict[str, Any], Axes] | None:
    """Follows axes of some arguments to the other arguments and the result.

    Args:
        operator: the operator's name.
        shapes: by the name of a tensor argument its shape, or those of a list of tensors.
        axes: likewise, the axes to follow, None for an argument that has none of them.
        output: shape of the result.
        equation: that of an einsum.

    Returns:
        (by argument the axes that are broadcast against or meet those followed, those of the result); None where positions meet,
        or where it is not known.

    Example:
        >>> axes_of_call("aten::bmm", {"self": (5, 3, 4), "mat2": (5, 4, 1)}, {"self": (0,), "mat2": None}, (5, 3, 1))
        ({'self': (0,), 'mat2': (0,)}, (0,))
        >>> axes_of_call("aten::bmm", {"self": (5, 3, 4), "mat2": (5, 4, 1)}, {"self": (2,), "mat2": None}, (5, 3, 1)) is None
        True
    """
    if operator == "aten::einsum":
        return _einsum(shapes["tensors"], axes["tensors"], equation)
    if operator in ENTRYWISE:
        return _broadcast(shapes, axes, len(output), 1, False)
    if operator in ("aten::bmm", "aten::matmul", "aten::mm") and all(len(shape) >= 2 for shape in shapes.values()):
        _, second = axes
        # Rows of the first factor alone are positions too.
        rows = axes[second] is None and len(shapes[second]) == 2
        return _broadcast(shapes, axes, len(output), 2 if rows else 3, rows)
    if operator == "aten::linear":
        found = axes["input"]
        if found is None or axes["weight"] is not None or axes.get("bias") is not None:
            return None
        last = len(shapes["input"]) - 1
        return ({name: found if name == "input" else () for name in shapes}, found) if last not in found else None
    if operator == "aten::cat" and len(set(axes["tensors"])) == 1:
        return {"tensors": list(axes["tensors"])}, axes["tensors"][0]
    return None


def _broadcast(
    shapes: Mapping[str, Any], axes: Mapping[str, Any], rank: int, nearest: int, alone: bool
) -> tuple[dict[str, Any], Axes] | None:
    """Axes are the same where they are as far from the last; `nearest`: the least distance; `alone`: only the first has them."""
    distances = {tuple(len(shapes[name]) - axis for axis in found) for name, found in axes.items() if found is not None}
    if len(distances) != 1:
        return None
    distance = distances.pop()
    if min(distance) < nearest or max(distance) > rank:
        return None
    followed: dict[str, Any] = {}
    for name, shape in shapes.items():
        if axes[name] is not None:
            followed[name] = axes[name]
        else:
            followed[name] = () if alone else tuple(len(shape) - d for d in distance if d <= len(shape))
    return followed, tuple(rank - d for d in distance)


def _einsum(shapes: Sequence[Sequence[int]], axes: Sequence[Axes | None], equation: str) -> tuple[dict[str, Any], Axes] | None:
    """Axes are the same where they have the same letter."""
    letters, out = read_equation(equation, [len(shape) for shape in shapes])
    names = {tuple(own[axis] for axis in found) for own, found in zip(letters, axes, strict=True) if found is not None}
    if len(names) != 1:
        return None
    followed = names.pop()
    if any(out.count(letter) != 1 or any(own.count(letter) > 1 for own in letters) for letter in followed):
        return None
    found = [tuple(own.index(letter) for letter in followed if letter in own) for own in letters]
    return {"tensors": found}, tuple(out.index(letter) for letter in followed)

"""The true law of an operator, measured from its derivative, without any rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from .rule_cases.case import Case, Spread, is_floating, points, real, values_of

__all__ = ["Measured", "measured"]

NULL = 1e-9
"""Singular values below this (relative to the largest entry) are zero; none may lie between it and `GAP`."""
GAP = 1e-6


@dataclass(frozen=True)
class Measured:
    """The true law of an operator near random points, without any rule.

    With a the logarithms of the inputs' factors, b of the outputs', and y = op(x): J diag(x) a = y b at every x. Eliminating b
    between two points leaves equations on a alone; `system` holds them, reduced to a square matrix. Inputs that have an offset
    o as a parameter have columns of J diag(o + x) too, behind all others.
    """

    system: torch.Tensor
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[float, ...]

    def dimension(self, spreads: Sequence[Spread]) -> int:
        """Dimension of all (a, b) that keep the law, where the inputs carry scales in the given way."""
        blocks, start, behind = [], 0, sum(map(math.prod, self.shapes))
        for shape, spread, offset in zip(self.shapes, spreads, self.offsets, strict=True):
            size = math.prod(shape)
            block = self.system[:, start : start + size]
            start += size
            if offset:
                block = self.system[:, behind : behind + size] if spread == "parameter" else block
                behind += size
            if isinstance(spread, tuple):
                others = [1 + axis for axis in range(len(shape)) if axis not in spread]
                wide = block.reshape(-1, *shape)
                block = (wide.sum(others) if others else wide).reshape(block.shape[0], math.prod(shape[axis] for axis in spread))
            if spread != "fixed":
                blocks.append(block)
        matrix = torch.cat(blocks, 1) if blocks else torch.zeros(1, 0, dtype=torch.float64)
        if not matrix.numel():
            return matrix.shape[1]
        singular = torch.linalg.svdvals(matrix)
        top = self.system.abs().max().item()
        relative = singular / top if top > 0 else singular
        if ((relative > NULL) & (relative < GAP)).any():
            raise AssertionError("the measurement has no gap: take more draws")
        return matrix.shape[1] - int((relative >= GAP).sum())


@lru_cache(maxsize=1)
def measured(case: Case) -> tuple[Measured, tuple[torch.Tensor, ...]]:
    """The measured law, and for every floating-point output which of its entries are neither always 0 nor infinite."""
    jacobians, outputs = [], []
    masks: list[torch.Tensor] = []
    seeds = iter(range(1000))
    by_hand = case.dimension is not None
    offsets = tuple(case.offset(k) for k in range(len(case.shapes)))
    wanted = 1 if by_hand else case.draws
    while len(outputs) < wanted:
        inputs = [x.requires_grad_(not by_hand) for x in points(case, next(seeds))]
        floating = [y for y in values_of(case, inputs) if is_floating(y)]
        masks = masks or [torch.zeros(y.shape, dtype=torch.bool) for y in floating]
        for mask, y in zip(masks, floating, strict=True):
            mask |= torch.isfinite(y) & (y != 0)
        flat = torch.cat([real(y).reshape(-1) for y in floating]) if floating else torch.zeros(0, dtype=torch.float64)
        outputs.append(flat.detach().double())
        # At least three times as many equations as unknowns.
        wanted = wanted if by_hand else max(wanted, 3 * sum(x.numel() for x in inputs) // max(1, len(flat)))
        jacobians.append(_jacobian(flat, inputs, offsets, by_hand))
    values, slopes = torch.stack(outputs), torch.stack(jacobians)
    finite = torch.isfinite(values) & torch.isfinite(slopes).all(-1)
    values, slopes = torch.where(finite, values, 0.0), torch.where(finite[..., None], slopes, 0.0)
    reference = values.abs().argmax(0)
    columns = torch.arange(values.shape[1])
    y0, s0 = values[reference, columns], slopes[reference, columns]
    first, second = slopes * y0[:, None], values[..., None] * s0
    size = torch.maximum(first.abs(), second.abs())
    # What differs by rounding alone does not differ.
    size = size.amax(-1, keepdim=True) if size.numel() else size
    rows = torch.where((first - second).abs() > 1e-13 * size, first - second, 0.0)[finite]
    rows = torch.cat([rows.reshape(-1, slopes.shape[-1]), slopes[finite & (y0 == 0)]])
    rows = rows[rows.abs().amax(1) > 0] if rows.numel() else rows
    rows = rows / rows.abs().amax(1, keepdim=True) if rows.numel() else rows[:0]
    if rows.shape[0] > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    return Measured(rows, case.shapes, offsets), tuple(masks)


def _jacobian(flat: torch.Tensor, inputs: Sequence[torch.Tensor], offsets: Sequence[float], by_hand: bool) -> torch.Tensor:
    """d flat / d log|input|, all inputs side by side; then d flat / d log|offset + input| of those that have an offset."""
    total = sum(x.numel() * (2 if o else 1) for x, o in zip(inputs, offsets, strict=True))
    if by_hand or not flat.requires_grad:
        return torch.zeros(len(flat), total, dtype=torch.float64)
    rows = []
    for unit in torch.eye(len(flat), dtype=flat.dtype):
        slopes = torch.autograd.grad(flat, inputs, unit, retain_graph=True, allow_unused=True)
        found = [torch.zeros_like(x) if s is None else s for s, x in zip(slopes, inputs, strict=True)]
        along = [s * x.detach() for s, x in zip(found, inputs, strict=True)]
        along += [s * (o + x.detach()) for s, x, o in zip(found, inputs, offsets, strict=True) if o]
        rows.append(torch.cat([s.reshape(-1) for s in along]))
    return torch.stack(rows).detach() if rows else torch.zeros(0, total, dtype=torch.float64)

"""Single entries of the counted tensors, with their exponents, as the solvers of p = inf and of large p take them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels.program import ReduceProgram
from ...kernels.reference.entries import described, largest, parts_above
from ...solve.max_balance.entries import Entries, Floats, Mask, joined

__all__ = ["entries_where", "largest_entries"]

_AT_ONCE = 1 << 16
"""Entries that are chosen from together: some 5 MiB with all that is worked out of them."""


@torch.no_grad()
def largest_entries(program: ReduceProgram, matrices: Sequence[Tensor], log_scales: Floats, count: int) -> Entries:
    """Returns so many of the largest entries of each channel of each tensor after a rescaling.

    Args:
        program: the objective, with p = inf or above 4.
        matrices: as `Backend.matrices` returns them.
        log_scales: (K,) natural logarithms.
        count: how many of each channel.
    """
    found = []
    for number, matrix, scales, _ in _on_device(matrices, log_scales, log_scales):
        block = program.to(matrix.device).blocks[number]
        found.append(_entries(program, number, matrix, largest(program.p, block, matrix, scales, count)))
    return joined(found)


@torch.no_grad()
def entries_where(
    program: ReduceProgram,
    matrices: Sequence[Tensor],
    log_scales: Floats,
    least: Floats,
    choose: Callable[[Entries], Mask],
) -> Entries:
    """Returns those of all entries above a value after a rescaling that are chosen; looks at a part at a time.

    Args:
        program, matrices, log_scales: as `largest_entries` takes them.
        least: (K,) values by variable, natural logarithms: an entry is to be above the least of those of its variables.
        choose: returns (n,) which of some entries to keep.
    """
    found: list[Entries] = []
    waiting: list[Entries] = []

    def look() -> None:
        """Chooses of those that wait."""
        some = joined(waiting)
        found.append(some.chosen(choose(some)))
        waiting.clear()

    for number, matrix, scales, values in _on_device(matrices, log_scales, least):
        block = program.to(matrix.device).blocks[number]
        if not block.terms:
            continue
        shift = _log_weight(program, number)
        for positions in parts_above(program.p, block, matrix, scales, values - shift):
            waiting.append(_entries(program, number, matrix, positions))
            if sum(map(len, waiting)) > _AT_ONCE:
                look()
    look()
    return joined(found)


def _on_device(matrices: Sequence[Tensor], log_scales: Floats, least: Floats) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yields the number of each matrix, the matrix, and two vectors on its device, which take one copy a device."""
    known: dict[torch.device, tuple[Tensor, Tensor]] = {}
    for number, matrix in enumerate(matrices):
        if matrix.device not in known:
            known[matrix.device] = torch.from_numpy(log_scales).to(matrix.device), torch.from_numpy(least).to(matrix.device)
        yield number, matrix, *known[matrix.device]


def _entries(program: ReduceProgram, number: int, matrix: Tensor, positions: Tensor) -> Entries:
    """Returns the entries of one tensor at some positions."""
    block = program.to(matrix.device).blocks[number]
    ids, coefficients, logs = (some.cpu().numpy() for some in described(program.p, block, matrix, positions, program.num_scales))
    if not ids.shape[1]:
        return Entries.none()
    logs = logs.astype(np.float64) + _log_weight(program, number)
    return Entries.of_terms(ids, np.broadcast_to(coefficients, ids.shape), logs)


def _log_weight(program: ReduceProgram, number: int) -> float:
    """Returns the log of a tensor's layer weight, as a factor of its entries; 0 for p = inf, which has none."""
    return 0.0 if math.isinf(program.p) else float(program.log_weights[number]) / program.p

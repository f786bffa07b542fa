"""Second derivatives of the objective, and its restriction to a few scalars, from the matrices that were read once.

With m_e the entry's term of the objective, its Hessian is p^2 * sum_e m_e a_e a_e^T: a graph Laplacian where every weight has
one variable a side. Products with it need the matrices and nothing of their size besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .channel_sums import expanded, has_two_sides, is_linear, row_blocks, table_of, table_products
from .program import Block, ReduceProgram

__all__ = ["Curvature", "aggregate"]

_LARGEST = 600.0
"""Exponents are cut here: beyond it a float64 over- or underflows, and the entry does not matter beside others."""


@dataclass(frozen=True)
class _Sides:
    """A matrix of rows by columns and what turns it into second derivatives, by side."""

    table: Tensor
    ids: tuple[Tensor, Tensor]
    coefficients: tuple[int, int]
    inner: tuple[Tensor, Tensor]
    outer: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Entries:
    """Any other tensor: its entries, one by one."""

    matrix: Tensor
    block: Block
    outer: tuple[Tensor, ...]


class Curvature:
    """The Hessian at some log-scales, each row divided by p^2 times that variable's N + P: entries of order 1 at any scale.

    Args:
        program: the objective.
        matrices: as `Backend.matrices` returns them.
        log_scales: (K,) where.
        log_diagonal: (K,) log(N + P) there.
        free: (K,) bool: variables that move; the others count as fixed.
        contributions: (slots,) as `Backend.contributions` returns them for `log_scales`.
    """

    def __init__(
        self,
        program: ReduceProgram,
        matrices: Sequence[Tensor],
        log_scales: Tensor,
        log_diagonal: Tensor,
        free: Tensor,
        contributions: Tensor,
    ) -> None:
        self._program, self._free = program, free
        self._parts: list[_Sides | _Entries] = []
        # A variable that does not move has a column of zeros: it is multiplied by 0 below.
        scale = torch.nn.functional.pad(torch.where(free, log_diagonal, 0.0), (0, 1))
        padded = torch.nn.functional.pad(log_scales, (0, 1))
        own = torch.zeros_like(scale)
        position, log_weights = 0, program.log_weights.tolist()
        for number, matrix in enumerate(matrices):
            block = program.to(matrix.device).blocks[number]
            log_weight = log_weights[number]
            simple = block.collided is None and (len(block.terms) == 1 or has_two_sides(block))
            for coefficient, ids in block.terms:
                flat = ids.reshape(-1).to(scale.device)
                if simple:
                    sums = contributions[position : position + flat.numel()] + log_weight - scale[flat]
                    own.index_add_(0, flat, coefficient**2 * sums.clamp(max=_LARGEST).exp())
                position += flat.numel()
            position += 0 if block.collided_rows is None else block.collided_rows.numel()
            if len(block.terms) > 1:
                make = _sides if has_two_sides(block) else _entries
                self._parts.append(make(program.p, block, matrix, padded.to(matrix), scale.to(matrix.device), log_weight))
        self._own = torch.where(free, own[:-1], 1.0)

    @torch.no_grad()
    def product(self, vector: Tensor) -> Tensor:
        """(K,) the Hessian times a vector (K,), row k divided by p^2 (N_k + P_k); 0 in places that do not move."""
        moving = torch.where(self._free, vector, 0.0)
        padded = torch.nn.functional.pad(moving, (0, 1))
        total = torch.nn.functional.pad(self._own * moving, (0, 1))
        ids: list[Tensor] = []
        values: list[Tensor] = []
        for part in self._parts:
            results = (
                _sides_product(self._program.p, part, padded) if isinstance(part, _Sides) else _entries_product(part, padded)
            )
            for index, value in results:
                ids.append(index.to(total.device))
                values.append(value.to(total))
        if ids:
            total.index_put_((torch.cat(ids),), torch.cat(values), accumulate=True)
        return torch.where(self._free, total[:-1], 0.0)


def _exp(exponent: Tensor) -> Tensor:
    """exp, cut before it leaves float64."""
    return exponent.clamp(-_LARGEST, _LARGEST).exp()


def _sides(p: float, block: Block, matrix: Tensor, log_scales: Tensor, scale: Tensor, log_weight: float) -> _Sides:
    """Rows by columns: two vectors a side, so that outer * (table @ (inner * v)) is the rows' share of the product."""
    (row_coefficient, rows), (column_coefficient, columns) = block.terms
    rows, columns = rows.reshape(-1), columns.reshape(-1)
    up = p * row_coefficient * log_scales[rows].to(scale)
    down = p * column_coefficient * log_scales[columns].to(scale)
    table = table_of(block, matrix)
    row_scale, column_scale = scale[rows], scale[columns]
    if is_linear(p):
        up_most, down_most = up.amax(), down.amax()
        inner = ((down - down_most).exp(), (up - up_most).exp())
        outer = (_exp(up + down_most + log_weight - row_scale), _exp(down + up_most + log_weight - column_scale))
    else:
        # Logarithms: the symmetric form has no entry above 1, whatever the range of the powers.
        logs = table + (up - row_scale / 2 + log_weight)[:, None]
        table = logs.add_((down - column_scale / 2)[None, :]).exp_()
        reference = torch.cat([row_scale, column_scale]).mean()
        inner = (_exp((column_scale - reference) / 2), _exp((row_scale - reference) / 2))
        outer = (_exp((reference - row_scale) / 2), _exp((reference - column_scale) / 2))
    return _Sides(table, (rows, columns), (row_coefficient, column_coefficient), inner, outer)


def _sides_product(p: float, part: _Sides, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each side's share; the products with a variable's own entries are in the diagonal already."""
    local = vector.to(part.inner[0])
    both = part.coefficients[0] * part.coefficients[1]
    right, left = part.inner[0] * local[part.ids[1]], part.inner[1] * local[part.ids[0]]
    above, below = table_products(p, part.table, right, left)
    return [(part.ids[0], both * part.outer[0] * above), (part.ids[1], both * part.outer[1] * below)]


def _entries(p: float, block: Block, matrix: Tensor, log_scales: Tensor, scale: Tensor, log_weight: float) -> _Entries:
    """Everything else, as entries relative to the largest of them."""
    logs = _log_entries(p, block, matrix, log_scales) + log_weight
    reference = logs.amax()
    reference = torch.where(reference.isfinite(), reference, 0.0)
    outer = tuple(_exp(reference - scale[ids]) for _, ids in block.terms)
    return _Entries((logs - reference).exp(), block, outer)


def _entries_product(part: _Entries, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The terms' shares, a variable's own entries included; where two terms meet in one variable their sum is right too."""
    local = vector.to(part.matrix)
    slopes = sum((coefficient * local[ids] for coefficient, ids in part.block.terms), local.new_zeros(()))
    change = part.matrix * slopes
    found = []
    for (coefficient, ids), axes, outer in zip(part.block.terms, part.block.term_axes, part.outer, strict=True):
        share = change.sum(axes, keepdim=True) if axes else change
        found.append((ids.reshape(-1), (coefficient * outer * share).reshape(-1)))
    return found


def _log_entries(p: float, block: Block, matrix: Tensor, log_scales: Tensor) -> Tensor:
    """The log of every entry of a matrix after a rescaling, in the wide type."""
    wide = expanded(p, matrix)
    logs = wide.log() if is_linear(p) else wide
    for coefficient, ids in block.terms:
        logs = logs + (p * coefficient) * log_scales[ids].to(wide)
    return logs


@torch.no_grad()
def aggregate(
    program: ReduceProgram, matrices: Sequence[Tensor], log_scales: Tensor, labels: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The objective as a function of one scalar a label, which is added to all log-scales of that label.

    Args:
        program: the objective.
        matrices: as `Backend.matrices` returns them.
        log_scales: (K,) where the scalars are 0.
        labels: (K,) int64 in 0 ... count; `count` is fixed.
        count: number of labels.

    Returns:
        (E,) logs of the entries, and their exponents: (3, n) int64 of entry, label and coefficient, which add up where an entry
        and a label occur together more than once.
    """
    padded_labels = torch.nn.functional.pad(labels, (0, 1), value=count)
    logs: list[Tensor] = []
    triples: list[Tensor] = []
    start, log_weights = 0, program.log_weights.tolist()
    for number, matrix in enumerate(matrices):
        block = program.to(matrix.device).blocks[number]
        local, scales = padded_labels.to(matrix.device), torch.nn.functional.pad(log_scales.to(matrix.device), (0, 1))
        if has_two_sides(block) and is_linear(program.p):
            found, keys = _by_label_sides(program.p, block, matrix, scales, local)
        else:
            found, keys = _by_label(program.p, block, matrix, scales, local, count)
        alive = found.isfinite()
        found, keys = found[alive] + log_weights[number], keys[:, alive]
        rows = torch.arange(start, start + found.numel(), device=found.device)
        for (coefficient, _), ids in zip(block.terms, keys, strict=True):
            moving = ids < count
            triples.append(torch.stack([rows[moving], ids[moving], torch.full_like(ids[moving], coefficient)]).to(labels.device))
        start += found.numel()
        logs.append(found.to(log_scales))
    if not triples:
        return log_scales[:0], labels.new_zeros((3, 0))
    return torch.cat(logs), torch.cat(triples, 1)


def _by_label_sides(p: float, block: Block, matrix: Tensor, log_scales: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logs of a two-sided tensor's totals by row and column label, and these labels (2, E)."""
    (row_coefficient, rows), (column_coefficient, columns) = block.terms
    up, down = p * row_coefficient * log_scales[rows].reshape(-1), p * column_coefficient * log_scales[columns].reshape(-1)
    row_labels, row_places = torch.unique(labels[rows.reshape(-1)], return_inverse=True)
    column_labels, column_places = torch.unique(labels[columns.reshape(-1)], return_inverse=True)
    most = down.amax()
    right = torch.zeros(down.numel(), column_labels.numel(), dtype=down.dtype, device=down.device)
    right[torch.arange(down.numel(), device=down.device), column_places] = (down - most).exp()
    table = table_of(block, matrix)
    sums = (
        torch.cat([expanded(p, table[part]) @ right for part in row_blocks(table)])
        if table.dtype != down.dtype
        else table @ right
    )
    highest = up.amax()
    totals = torch.zeros(row_labels.numel(), column_labels.numel(), dtype=down.dtype, device=down.device)
    totals.index_put_((row_places,), (up - highest).exp()[:, None] * sums, accumulate=True)
    keys = torch.stack([row_labels.repeat_interleave(column_labels.numel()), column_labels.repeat(row_labels.numel())])
    return (totals.log() + most + highest).reshape(-1), keys


def _by_label(p: float, block: Block, matrix: Tensor, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same for any tensor: logs by combination of labels, and the combinations (terms, E)."""
    logs = _log_entries(p, block, matrix, log_scales).reshape(-1)
    shape = matrix.shape
    places = torch.zeros((), dtype=torch.int64, device=matrix.device)
    by_term = [labels[ids] for _, ids in block.terms]
    # One number a combination, made small again after each term so that it cannot overflow.
    for ids in by_term:
        _, places = torch.unique(places * (count + 1) + ids, return_inverse=True)
    places = places.expand(shape).reshape(-1)
    size = int(places.max()) + 1 if places.numel() else 0
    largest = logs.new_full((size,), -math.inf).scatter_reduce(0, places, logs, "amax")
    reference = torch.where(largest.isfinite(), largest, 0.0)
    totals = torch.zeros_like(largest).index_put_((places,), (logs - reference[places]).exp(), accumulate=True)
    keys = places.new_zeros((len(by_term), size))
    for row, ids in zip(keys, by_term, strict=True):
        row.scatter_(0, places, ids.expand(shape).reshape(-1))
    return reference + totals.log(), keys

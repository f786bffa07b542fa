"""Second derivatives of the objective, and its restriction to a few scalars, from the matrices that were read once.

With m_e the entry's term of the objective, its Hessian is p^2 * sum_e m_e a_e a_e^T: a graph Laplacian where every weight has
one variable a side. Products with it need the matrices, which are read in parts; only where matrices hold logarithms is a table
in float32 kept besides, so that not every product takes exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parts import part_of, rows_of
from ..program import Block, ReduceProgram
from .channel_sums import (
    expanded,
    has_two_sides,
    is_full,
    is_linear,
    shifted_parts,
    shifts_of,
    sides_of,
    table_of,
    table_products,
)
from .joint_tables import JointTables, Shares

__all__ = ["LARGEST_EXPONENT", "Curvature", "aggregate"]

_LITTLE = 1 << 16
"""Tables of more entries are kept in float32: what they cost in precision does not matter to the direction of a step."""

_MOST_CELLS = 1 << 20
"""Combinations of labels that are counted whether they occur or not: 8 MiB of float64 a tensor."""

LARGEST_EXPONENT = 600.0
"""Exponents are cut here: beyond it a float64 over- or underflows, and the entry does not matter beside others."""


@dataclass(frozen=True)
class _Sides:
    """A matrix of rows by columns, or a stack of them, and what turns it into second derivatives, by side."""

    table: Tensor
    ids: tuple[Tensor, Tensor]
    coefficients: tuple[int, int]
    inner: tuple[Tensor, Tensor]
    outer: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Entries:
    """Any other tensor: each product works its entries out anew, as `inner` beside the largest, times `outer` by term."""

    matrix: Tensor
    block: Block
    inner: tuple[Tensor, ...]
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
        joint: the blocks that an executor multiplies together; None: there are none.
    """

    def __init__(
        self,
        program: ReduceProgram,
        matrices: Sequence[Tensor],
        log_scales: Tensor,
        log_diagonal: Tensor,
        free: Tensor,
        contributions: Tensor,
        joint: JointTables | None = None,
    ) -> None:
        self._program, self._free = program, free
        # A variable that does not move has a column of zeros: it is multiplied by 0 below.
        scale = torch.nn.functional.pad(torch.where(free, log_diagonal, 0.0), (0, 1))
        padded = torch.nn.functional.pad(log_scales, (0, 1))
        log_weights = program.log_weights.tolist()
        own = _own_entries(program, matrices, contributions, scale, log_weights)
        self._own = torch.where(free, own[:-1], 1.0)
        self._joint = None if joint is None else joint.shares_at(padded, scale)
        self._parts: list[_Sides | _Entries] = []
        for number, matrix in enumerate(matrices):
            block = program.to(matrix.device).blocks[number]
            if len(block.terms) > 1 and (joint is None or number not in joint.members):
                make = _sides if _has_table(program.p, block, matrix) else _entries
                part = make(program.p, block, matrix, padded.to(matrix.device), scale.to(matrix.device), log_weights[number])
                self._parts.append(part)

    @torch.no_grad()
    def product(self, vector: Tensor) -> Tensor:
        """Returns (K,) the Hessian times a vector (K,), row k divided by p^2 (N_k + P_k); 0 in places that do not move."""
        moving = torch.where(self._free, vector, 0.0)
        padded = torch.nn.functional.pad(moving, (0, 1))
        total = torch.nn.functional.pad(self._own * moving, (0, 1))
        found = [] if self._joint is None else self._joint(padded)
        for part in self._parts:
            found += (
                _sides_product(self._program.p, part, padded)
                if isinstance(part, _Sides)
                else _entries_product(self._program.p, part, padded)
            )
        ids = [index.to(total.device) for index, _ in found]
        values = [value.to(total) for _, value in found]
        if ids:
            total.index_put_((torch.cat(ids),), torch.cat(values), accumulate=True)
        return torch.where(self._free, total[:-1], 0.0)


def _own_entries(
    program: ReduceProgram, matrices: Sequence[Tensor], contributions: Tensor, scale: Tensor, log_weights: Sequence[float]
) -> Tensor:
    """Returns (K + 1,) the diagonal, as far as it follows from the channel sums: of blocks with one term or two sides."""
    own = torch.zeros_like(scale)
    position = 0
    for number, matrix in enumerate(matrices):
        block = program.to(matrix.device).blocks[number]
        simple = block.collided is None and (len(block.terms) == 1 or has_two_sides(block))
        for coefficient, ids in block.terms:
            flat = ids.reshape(-1).to(scale.device)
            if simple:
                sums = contributions[position : position + flat.numel()] + log_weights[number] - scale[flat]
                own.index_add_(0, flat, coefficient**2 * sums.clamp(max=LARGEST_EXPONENT).exp())
            position += flat.numel()
        position += 0 if block.collided_rows is None else block.collided_rows.numel()
    return own


def _has_table(p: float, block: Block, matrix: Tensor) -> bool:
    """Whether a block is taken as rows by columns."""
    # A float64 weight whose logarithms are kept leaves no room for a table, and a stack of logarithms is taken entry by entry.
    if not has_two_sides(block):
        return False
    return is_linear(p) or not (is_full(block, matrix) or sides_of(block)[0].ndim == 2)


def _exp(exponent: Tensor) -> Tensor:
    """Returns exp, cut before it leaves float64."""
    return exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()


def _sides(p: float, block: Block, matrix: Tensor, log_scales: Tensor, scale: Tensor, log_weight: float) -> _Sides:
    """Returns rows by columns with two vectors a side: outer * (table @ (inner * v)) is the rows' share of the product."""
    (row_coefficient, _), (column_coefficient, _) = block.terms
    rows, columns = sides_of(block)
    up = p * row_coefficient * log_scales[rows].to(scale)
    down = p * column_coefficient * log_scales[columns].to(scale)
    table = table_of(block, matrix)
    if not is_linear(p):
        table, up, down = _equilibrated(p, table, up, down)
    up_most, down_most = up.amax(-1, keepdim=True), down.amax(-1, keepdim=True)
    inner = ((down - down_most).exp(), (up - up_most).exp())
    outer = (
        _exp(up + down_most + log_weight - scale[rows]),
        _exp(down + up_most + log_weight - scale[columns]),
    )
    return _Sides(table, (rows, columns), (row_coefficient, column_coefficient), inner, outer)


def _equilibrated(p: float, logs: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a table of logarithms as numbers, at most 1 in every row and column, and the logs of rows and columns beside it.

    Args:
        p: the norm's exponent.
        logs: rows by columns of what `expanded` makes logarithms of.
        up, down: what a rescaling adds to rows and columns.
    """
    above = torch.empty_like(up)
    left = torch.full_like(down, -math.inf)
    for rows in rows_of(logs):
        part = expanded(p, logs[rows]) + down
        most = part.amax(1)
        above[rows] = torch.where(most.isfinite(), most, 0.0)
        left = torch.maximum(left, (part - above[rows][:, None]).amax(0))
    left = torch.where(left.isfinite(), left, 0.0)
    table = torch.empty(logs.shape, dtype=torch.float32 if logs.numel() > _LITTLE else up.dtype, device=logs.device)
    for rows in rows_of(logs):
        table[rows] = (expanded(p, logs[rows]) + (down - left) - above[rows][:, None]).exp()
    return table, up + above, left


def _sides_product(p: float, part: _Sides, vector: Tensor) -> Shares:
    """Returns each side's share; the products with a variable's own entries are in the diagonal already."""
    local = vector.to(part.inner[0])
    both = part.coefficients[0] * part.coefficients[1]
    right, left = part.inner[0] * local[part.ids[1]], part.inner[1] * local[part.ids[0]]
    above, below = table_products(p if is_linear(p) else 1.0, part.table, right, left)
    shares = (both * part.outer[0] * above, both * part.outer[1] * below)
    return [(ids.reshape(-1), share.reshape(-1)) for ids, share in zip(part.ids, shares, strict=True)]


def _entries(p: float, block: Block, matrix: Tensor, log_scales: Tensor, scale: Tensor, log_weight: float) -> _Entries:
    """Returns any other tensor as entries relative to a bound of them."""
    shifts = shifts_of(p, block, log_scales[:-1])
    if is_linear(p):
        most = [shift.amax() for shift in shifts]
        inner = tuple(shift - largest for shift, largest in zip(shifts, most, strict=True))
        reference = torch.stack(most).sum()
    else:
        # Logarithms have no largest entry of 1 by themselves: it is found and taken out of the first term.
        reference = torch.stack([part.amax() for _, part in shifted_parts(p, matrix, shifts)]).amax()
        reference = torch.where(reference.isfinite(), reference, 0.0)
        inner = (shifts[0] - reference, *shifts[1:])
    outer = tuple(_exp(reference + log_weight - scale[ids]) for _, ids in block.terms)
    return _Entries(matrix, block, inner, outer)


def _entries_product(p: float, part: _Entries, vector: Tensor) -> Shares:
    """Returns the terms' shares, a variable's own entries included, and right also where two terms meet in one variable."""
    block = part.block
    slopes = [coefficient * vector.to(part.outer[0])[ids] for coefficient, ids in block.terms]
    totals = [torch.zeros_like(ids, dtype=slopes[0].dtype) for _, ids in block.terms]
    for index, shifted in shifted_parts(p, part.matrix, part.inner):
        entries = shifted if is_linear(p) else shifted.exp()
        change = entries * sum((part_of(slope, index) for slope in slopes[1:]), part_of(slopes[0], index))
        for total, axes in zip(totals, block.term_axes, strict=True):
            share = change.sum(axes, keepdim=True) if axes else change
            part_of(total, index).add_(share)
    return [
        (ids.reshape(-1), (coefficient * outer * total).reshape(-1))
        for (coefficient, ids), outer, total in zip(block.terms, part.outer, totals, strict=True)
    ]


@torch.no_grad()
def aggregate(
    program: ReduceProgram,
    matrices: Sequence[Tensor],
    log_scales: Tensor,
    labels: Tensor,
    count: int,
    joint: JointTables | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the objective as a function of one scalar a label, which is added to all log-scales of that label.

    Args:
        program: the objective.
        matrices: as `Backend.matrices` returns them.
        log_scales: (K,) where the scalars are 0.
        labels: (K,) int64 in 0 ... count; `count` is fixed.
        count: number of labels.
        joint: the blocks that an executor adds up together; None: there are none.

    Returns:
        (E,) logs of the entries, and their exponents: (3, n) int64 of entry, label and coefficient, which add up where an entry
        and a label occur together more than once.
    """
    padded_labels = torch.nn.functional.pad(labels, (0, 1), value=count)
    logs: list[Tensor] = []
    triples: list[Tensor] = []
    start, log_weights = 0, program.log_weights.tolist()
    known = {} if joint is None else joint.totals_at(torch.nn.functional.pad(log_scales, (0, 1)), padded_labels)
    for number, matrix in enumerate(matrices):
        block = program.to(matrix.device).blocks[number]
        found, keys = known[number] if number in known else _totals(program.p, block, matrix, log_scales, padded_labels)
        alive = found.isfinite()
        found, keys = found[alive] + log_weights[number], keys[:, alive]
        rows = torch.arange(start, start + found.numel(), dtype=torch.int64, device=found.device)
        for (coefficient, _), ids in zip(block.terms, keys, strict=True):
            moving = ids < count
            triples.append(torch.stack([rows[moving], ids[moving], torch.full_like(ids[moving], coefficient)]).to(labels.device))
        start += found.numel()
        logs.append(found.to(log_scales))
    return torch.cat([log_scales[:0], *logs]), torch.cat([labels.new_zeros((3, 0)), *triples], 1)


def _totals(p: float, block: Block, matrix: Tensor, log_scales: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logs of a tensor's totals by combination of labels, and the combinations (terms, E); labels are (K + 1,)."""
    local, scales = labels.to(matrix.device), torch.nn.functional.pad(log_scales.to(matrix.device), (0, 1))
    plain = has_two_sides(block) and sides_of(block)[0].ndim == 1
    return (_by_label_sides if plain and is_linear(p) else _by_label)(p, block, matrix, scales, local)


def _by_label_sides(p: float, block: Block, matrix: Tensor, log_scales: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logs of a two-sided tensor's totals by row and column label, and these labels (2, E)."""
    (row_coefficient, rows), (column_coefficient, columns) = block.terms
    up, down = p * row_coefficient * log_scales[rows].reshape(-1), p * column_coefficient * log_scales[columns].reshape(-1)
    row_labels, row_places = torch.unique(labels[rows.reshape(-1)], return_inverse=True)
    column_labels, column_places = torch.unique(labels[columns.reshape(-1)], return_inverse=True)
    most = down.amax()
    right = torch.zeros(down.numel(), column_labels.numel(), dtype=down.dtype, device=down.device)
    right[torch.arange(down.numel(), dtype=torch.int64, device=down.device), column_places] = (down - most).exp()
    table = table_of(block, matrix)
    sums = (
        torch.cat([expanded(p, table[part]) @ right for part in rows_of(table)]) if table.dtype != down.dtype else table @ right
    )
    highest = up.amax()
    totals = torch.zeros(row_labels.numel(), column_labels.numel(), dtype=down.dtype, device=down.device)
    totals.index_put_((row_places,), (up - highest).exp()[:, None] * sums, accumulate=True)
    keys = torch.stack([row_labels.repeat_interleave(column_labels.numel()), column_labels.repeat(row_labels.numel())])
    return (totals.log() + most + highest).reshape(-1), keys


def _by_label(p: float, block: Block, matrix: Tensor, log_scales: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the same for any tensor: logs by combination of labels, and the combinations (terms, E)."""
    shifts = shifts_of(p, block, log_scales[:-1])
    found_and_places = [torch.unique(labels[ids], return_inverse=True) for _, ids in block.terms]
    known = [found for found, _ in found_and_places]
    sizes = [found.numel() for found in known]
    strides = [math.prod(sizes[number + 1 :]) for number in range(len(sizes))]
    places = [place * stride for (_, place), stride in zip(found_and_places, strides, strict=True)]
    places = places or [torch.zeros([1] * matrix.ndim, dtype=torch.int64, device=matrix.device)]
    size = math.prod(sizes)
    if size <= _MOST_CELLS:
        numbers = torch.arange(size, dtype=torch.int64, device=matrix.device)
    else:
        # Many labels in several terms: only the combinations that occur.
        numbers, place = torch.unique(sum(places[1:], places[0]).expand(matrix.shape), return_inverse=True)
        places, size = [place], numbers.numel()
    keys = [found[numbers // stride % found.numel()] for found, stride in zip(known, strides, strict=True)]
    if is_linear(p):
        reference = sum((shift.amax() for shift in shifts), log_scales.new_zeros(()))
        shifts = [shift - shift.amax() for shift in shifts]
        largest = torch.zeros(size, dtype=reference.dtype, device=matrix.device)
    else:
        reference = log_scales.new_zeros(())
        largest = torch.full((size,), -math.inf, dtype=reference.dtype, device=matrix.device)
        for cells, part in _cells(p, matrix, shifts, places):
            largest = largest.scatter_reduce(0, cells, part, "amax")
        largest = torch.where(largest.isfinite(), largest, 0.0)
    totals = torch.zeros_like(largest)
    for cells, part in _cells(p, matrix, shifts, places):
        totals.index_put_((cells,), part if is_linear(p) else (part - largest[cells]).exp(), accumulate=True)
    return reference + largest + totals.log(), torch.stack(keys) if keys else labels.new_zeros((0, size))


def _cells(p: float, matrix: Tensor, shifts: Sequence[Tensor], places: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the entries after a rescaling, a part at a time, and the number of each entry's combination of labels."""
    for index, part in shifted_parts(p, matrix, shifts):
        cells = sum((part_of(place, index) for place in places[1:]), part_of(places[0], index))
        yield cells.expand(part.shape).reshape(-1), part.reshape(-1)

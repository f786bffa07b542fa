"""Single entries for p = inf: all tensors of rows by columns in a few compiled calls."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...backend import FoundEntries
from ...memory import has_plain_memory
from ...program import Block, ReduceProgram
from ...reference.channel_sums import is_narrow
from ...reference.entries import ROUNDING, entries_above, largest_entries
from ...reference.sizes import MOST_SHIFT
from .product_tables import InLines, ProductTables, sides_in_memory

__all__ = ["CompiledLooks"]


class CompiledLooks:
    """The entries above some value, and the largest of each channel; for p = inf. What is no table is left to the reference.

    Args:
        library: the compiled kernels.
        program: the objective, on the CPU.
        matrices: as `Backend.matrices` returns them.
    """

    def __init__(self, library: ctypes.CDLL, program: ReduceProgram, matrices: Sequence[Tensor]) -> None:
        self._library, self._program, self._matrices = library, program, list(matrices)
        self._rest: list[int] = []
        tables: list[Tensor] = []
        ids = [torch.zeros(0, dtype=torch.int64, device="cpu")]
        facts: list[tuple[int, int]] = []
        for number, (block, matrix) in enumerate(zip(program.blocks, matrices, strict=True)):
            found = _tables_of(block, matrix, program.num_scales) if math.isinf(program.p) else []
            if not found:
                self._rest.append(number)
            for table, sides in found:
                tables.append(table)
                for coefficient, own in sides:
                    ids.append(own.to(torch.int64))
                    facts.append((coefficient, int(is_narrow(matrix))))
        self._tables = ProductTables(tables, for_looks=True)
        self._ids = torch.cat(ids)
        self._starts = np.cumsum(self._tables.lengths) - self._tables.lengths
        lengths = torch.from_numpy(self._tables.lengths)
        by_line = torch.tensor(facts, dtype=torch.int64, device="cpu").reshape(-1, 2).repeat_interleave(lengths, 0)
        self._coefficients, self._narrow = by_line[:, 0].contiguous(), by_line[:, 1] > 0
        self._known_ids = torch.where(self._ids == program.num_scales, -1, self._ids).numpy()

    @torch.no_grad()
    def above(self, log_scales: Tensor, least: Tensor) -> Iterator[FoundEntries]:
        """Yields the entries above the least value of their variables after a rescaling; see `ObjectiveSums`."""
        moves = self._moves(log_scales)
        if moves is None:
            yield from entries_above(self._program, self._matrices, log_scales, least)
            return
        bounds = torch.nn.functional.pad(least, (0, 1), value=math.inf)[self._ids]
        bounds = torch.where(self._narrow, (bounds - ROUNDING).exp(), bounds)
        for found in self._tables.above(self._library, moves, bounds):
            if len(found[0]):
                yield self._described(found)
        if self._rest:
            yield from entries_above(*self._others, log_scales, least)

    @torch.no_grad()
    def largest(self, log_scales: Tensor, count: int) -> Iterator[FoundEntries]:
        """Yields the largest entries of each channel of each tensor after a rescaling; see `ObjectiveSums`."""
        moves = self._moves(log_scales)
        if moves is None:
            yield from largest_entries(self._program, self._matrices, log_scales, count)
            return
        if self._tables.size:
            yield self._described(self._tables.largest(self._library, moves, count))
        if self._rest:
            yield from largest_entries(*self._others, log_scales, count)

    @property
    def _others(self) -> tuple[ReduceProgram, list[Tensor]]:
        """The blocks that are no tables."""
        return self._program.part(self._rest), [self._matrices[number] for number in self._rest]

    def _moves(self, log_scales: Tensor) -> Tensor | None:
        """Returns by line a factor, or what is added to logarithms; None where products may leave the range of float64."""
        shifts = torch.nn.functional.pad(log_scales, (0, 1))[self._ids] * self._coefficients
        if not self._tables.size:
            return shifts
        narrow = torch.where(self._narrow, shifts, 0.0)
        most = np.maximum.reduceat(narrow.abs().numpy(), self._starts).reshape(-1, 2).sum(1)
        return torch.where(self._narrow, narrow.exp(), shifts) if bool((most <= MOST_SHIFT).all()) else None

    def _described(self, found: InLines) -> FoundEntries:
        """Returns the exponents and logarithms of numbers that were found."""
        lines = np.stack(found[:2], axis=1)
        return self._known_ids[lines], self._coefficients.numpy()[lines], found[2]


def _tables_of(block: Block, matrix: Tensor, fixed: int) -> list[tuple[Tensor, list[tuple[int, Tensor]]]]:
    """Returns a block as tables, each with the coefficients and ids of its rows and of its columns; none where it is no table.

    Args:
        block: the tensor's terms.
        matrix: as `Backend.matrices` returns it.
        fixed: the id that stands for no variable.
    """
    if len(block.terms) == 1 and block.collided is None and not is_narrow(matrix):
        ((coefficient, ids),) = block.terms
        plain = matrix.device.type == "cpu" and has_plain_memory(matrix) and matrix.is_contiguous()
        if plain and matrix.numel() == ids.numel() > 0:
            # One entry a variable: a single column, which is fixed.
            column = torch.full((1,), fixed, dtype=torch.int64, device="cpu")
            return [(matrix.reshape(-1, 1), [(coefficient, ids.reshape(-1)), (0, column)])]
    return [
        (side.table, [(block.terms[term][0], own) for own, term in zip(side.ids, side.terms, strict=True)])
        for side in sides_in_memory(block, matrix)
    ]

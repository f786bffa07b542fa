"""Channel sums and second derivatives from matrices that were read once, all tensors of rows by columns in one compiled call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...backend import FoundEntries
from ...program import Block, ReduceProgram
from ...reference.channel_sums import contributions, is_linear
from ...reference.curvature import LARGEST_EXPONENT, Curvature, aggregate
from ...reference.joint_tables import Shares
from .label_totals import SideLabels
from .looks import CompiledLooks
from .product_tables import ProductTables, Sides, sides_in_memory

__all__ = ["CompiledSums"]


class CompiledSums:
    """See `ObjectiveSums`. Where a tensor has one variable an entry, its sums are taken once and moved after that.

    Args:
        library: the compiled kernels.
        program: the objective, on the CPU.
        matrices: as `Backend.matrices` returns them.
        eager: returns (slots,) the contributions of some blocks by themselves, as the reference executor works them out.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        program: ReduceProgram,
        matrices: Sequence[Tensor],
        eager: Callable[[ReduceProgram, Sequence[Tensor], Tensor | None], Tensor],
    ) -> None:
        self._library, self._program, self._matrices, self._eager = library, program, list(matrices), eager
        self._starts = np.cumsum([0, *(block.slots for block in program.blocks)])
        self._sides: dict[int, list[Sides]] = {}
        alone: list[int] = []
        self._rest: list[int] = []
        for number, (block, matrix) in enumerate(zip(program.blocks, matrices, strict=True)):
            found = sides_in_memory(block, matrix) if is_linear(program.p) else []
            if found:
                self._sides[number] = found
            else:
                (alone if _is_alone(program.p, block, matrix) else self._rest).append(number)
        self._tables = ProductTables([side.table for found in self._sides.values() for side in found])
        self._lines = _Lines(program, self._sides, self._starts, self._tables.lengths)
        self._alone = _Alone(program, self._matrices, alone, self._starts)
        self._rest_places = torch.from_numpy(_places(self._starts, self._rest))

    @torch.no_grad()
    def contributions(self, log_scales: Tensor | None = None) -> Tensor:
        """Returns (slots,) the logs of all blocks' channel sums after a rescaling."""
        found = torch.empty(int(self._starts[-1]), dtype=torch.float64, device="cpu")
        padded = None if log_scales is None else torch.nn.functional.pad(log_scales.double(), (0, 1))
        if self._tables.size:
            up, most = self._lines.shifts(padded)
            sums = self._tables.times(self._library, self._program.p, (up - most[0]).exp_())
            found[self._lines.places] = sums.log_().add_(up).add_(most[1])
        found[self._alone.places] = self._alone.moved(padded)
        if self._rest:
            part = self._program.part(self._rest)
            found[self._rest_places] = self._eager(part, [self._matrices[n] for n in self._rest], log_scales)
        return found

    @torch.no_grad()
    def curvature(self, log_scales: Tensor, log_diagonal: Tensor, free: Tensor) -> Curvature:
        """Returns the Hessian at some log-scales; see `Curvature`."""
        given = (self._program, self._matrices, log_scales, log_diagonal, free, self.contributions(log_scales))
        return Curvature(*given, joint=self if self._sides else None)

    @torch.no_grad()
    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the objective as a function of one scalar a label; see `aggregate`."""
        return aggregate(self._program, self._matrices, log_scales, labels, count, joint=self if self._sides else None)

    def entries_above(self, log_scales: Tensor, least: Tensor) -> Iterator[FoundEntries]:
        """Yields the single entries above a value after a rescaling."""
        return self._looks.above(log_scales, least)

    def largest_entries(self, log_scales: Tensor, count: int) -> Iterator[FoundEntries]:
        """Yields the largest entries of each channel of each tensor."""
        return self._looks.largest(log_scales, count)

    @cached_property
    def _looks(self) -> CompiledLooks:
        """What looks at all entries, which sums do not need."""
        return CompiledLooks(self._library, self._program, self._matrices)

    @property
    def members(self) -> frozenset[int]:
        """The blocks whose shares `shares_at` works out together."""
        return frozenset(self._sides)

    def shares_at(self, log_scales: Tensor, scale: Tensor) -> Callable[[Tensor], Shares]:
        """Returns a function from a vector (K + 1,) to the shares of `members` in the Hessian's product with it.

        Args:
            log_scales: (K + 1,) where; 0 for "fixed" at the end.
            scale: (K + 1,) by what each row is divided, a natural logarithm.
        """
        lines = self._lines
        up, most = lines.shifts(log_scales)
        inner = (up - most[0]).exp_()
        outer = (up + most[1] + lines.log_weights - scale[lines.ids]).clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp_()
        outer *= lines.both

        def shares(vector: Tensor) -> Shares:
            """Multiplies all tables at once."""
            sums = self._tables.times(self._library, self._program.p, inner * vector[lines.ids])
            return [(lines.ids, sums.mul_(outer))]

        return shares

    def totals_at(self, log_scales: Tensor, labels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Returns, by block, logs of its totals by combination of labels, and the combinations (2, E).

        Args:
            log_scales: (K + 1,) where; 0 for "fixed" at the end.
            labels: (K + 1,) int64.
        """
        lines, sides = self._lines, SideLabels(labels[self._lines.ids].numpy(), self._tables.lengths)
        up, most = lines.shifts(log_scales)
        inner = (up - most[0]).exp_()
        logs = sides.log_totals(lambda some: self._tables.times(self._library, self._program.p, some), inner)
        found = self._alone.totals(log_scales, labels)
        table = 0
        for number, tables in self._sides.items():
            own = range(table, table + len(tables))
            table += len(tables)
            if all(one in logs for one in own):
                firsts = [int(lines.starts[2 * one]) for one in own]
                values = [logs[one] + float(most[0][first] + most[1][first]) for one, first in zip(own, firsts, strict=True)]
                keys = [sides.keys(one, side.terms) for one, side in zip(own, tables, strict=True)]
                found[number] = torch.cat(values), torch.cat(keys, 1)
        return found


class _Lines:
    """What is known of each row and column of all tables, in the order of `ProductTables`."""

    def __init__(
        self, program: ReduceProgram, sides: dict[int, list[Sides]], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        log_weights, nothing = program.log_weights.tolist(), torch.zeros(0, dtype=torch.int64, device="cpu")
        ids, places, values = [nothing], [nothing], []
        for number, tables in sides.items():
            coefficients = [coefficient for coefficient, _ in program.blocks[number].terms]
            for side in tables:
                for one, term, first in zip(side.ids, side.terms, side.slots, strict=True):
                    ids.append(one.to(torch.int64))
                    places.append(torch.arange(one.numel(), dtype=torch.int64, device="cpu") + int(starts[number]) + first)
                    values.append((coefficients[term], coefficients[0] * coefficients[1], log_weights[number]))
        self.ids, self.places = torch.cat(ids), torch.cat(places)
        self.starts, self._lengths = np.cumsum(lengths) - lengths, torch.from_numpy(lengths)
        by_line = torch.tensor(values, dtype=torch.float64, device="cpu").reshape(-1, 3).repeat_interleave(self._lengths, 0)
        coefficients_, both, weights = by_line.unbind(1)
        self._powers, self.both, self.log_weights = program.p * coefficients_, both.contiguous(), weights.contiguous()

    def shifts(self, log_scales: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns what a rescaling adds to the logs of each line, the most of its own side, and the most of the other one.

        Args:
            log_scales: (K + 1,), or None: none.
        """
        if log_scales is None:
            nothing = torch.zeros(self.ids.numel(), dtype=torch.float64, device="cpu")
            return nothing, (nothing, nothing)
        up = log_scales[self.ids].mul_(self._powers)
        most = torch.from_numpy(np.maximum.reduceat(up.numpy(), self.starts))
        other = most.reshape(-1, 2).flip(1).reshape(-1)
        return up, (most.repeat_interleave(self._lengths), other.repeat_interleave(self._lengths))


class _Alone:
    """Blocks of one term: a rescaling moves their sums by what it moves their entries."""

    def __init__(
        self, program: ReduceProgram, matrices: Sequence[Tensor], numbers: Sequence[int], starts: NDArray[np.int64]
    ) -> None:
        empty = torch.zeros(0, dtype=torch.float64, device="cpu")
        logs, ids, powers = [empty], [empty.to(torch.int64)], [empty]
        for number in numbers:
            block = program.blocks[number]
            logs += list(contributions(program.p, block, matrices[number]))
            ((coefficient, own),) = block.terms
            ids.append(own.reshape(-1).to(torch.int64))
            powers.append(torch.full((own.numel(),), program.p * coefficient, dtype=torch.float64, device="cpu"))
        self._logs, self._ids, self._powers = torch.cat(logs), torch.cat(ids), torch.cat(powers)
        self.places = torch.from_numpy(_places(starts, numbers))
        self._sizes = {number: program.blocks[number].slots for number in numbers}

    def totals(self, log_scales: Tensor, labels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Returns, by block, logs of its totals by label after a rescaling (K + 1,), and these labels (1, E)."""
        found, start = {}, 0
        every, own = self.moved(log_scales).numpy(), labels[self._ids].numpy()
        for number, size in self._sizes.items():
            logs, known = every[start : start + size], own[start : start + size]
            start += size
            if known.min() == known.max():
                known, places = known[:1], np.zeros(size, dtype=np.int64)
            else:
                known, places = np.unique(known, return_inverse=True)
            most = logs.max()
            most = most if np.isfinite(most) else 0.0
            with np.errstate(divide="ignore"):
                totals = np.log(np.bincount(places, np.exp(logs - most), known.size)) + most
            found[number] = torch.from_numpy(totals), torch.from_numpy(known.copy())[None]
        return found

    def moved(self, log_scales: Tensor | None) -> Tensor:
        """Returns the contributions after a rescaling (K + 1,)."""
        return self._logs if log_scales is None else self._logs + self._powers * log_scales[self._ids]


def _is_alone(p: float, block: Block, matrix: Tensor) -> bool:
    """Whether each entry of a block carries one term."""
    fits = len(block.terms) == 1 and block.collided is None and block.slots > 0
    return is_linear(p) and fits and matrix.device.type == "cpu"


def _places(starts: NDArray[np.int64], numbers: Sequence[int]) -> NDArray[np.int64]:
    """Returns the slots of some blocks."""
    parts = [np.arange(starts[number], starts[number + 1]) for number in numbers]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

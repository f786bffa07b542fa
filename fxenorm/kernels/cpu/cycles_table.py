"""The tables of several cycles for the compiled kernels: sums over the kernels of convolutions, and what they are weighted by."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backend import CycleTask
from ..layout import MatrixForm
from .runs import Run, condensed, run_of
from .step_table import StepTable
from .structures import Condensed, CyclesArguments
from .tables import TYPES, ReduceTable, reduce_signature, row_factors

__all__ = ["CyclesTable"]

_WIDEST = 20_000
"""Columns of sums that a tile may have: as many as the step's own tiles, so that a row is never cut."""

_POWERS = (1.0, 2.0, 3.0, 4.0)
"""Exponents of which |w|^p and (f^p) |w|^p need no exponential; kernels for others would be slower than single cycles."""

_TYPES = (torch.float32, torch.bfloat16)
"""Types whose sums are taken in float32; those of float64 need more digits, and float16 has no room around ordinary weights."""


class CyclesTable:
    """Several Jacobi cycles on tensors that stay where they are.

    Args:
        step: the table of one cycle: its targets are scaled in the end.
        task: what is run.

    Attributes:
        refusals: why the kernels cannot do it, each reason once; `covers_all`: there is none.
    """

    def __init__(self, step: StepTable, task: CycleTask) -> None:
        forms, members = step.reduce.forms, step.reduce.members
        runs = [run_of(form) for form in forms]
        self.refusals = _refusals(task, members) if step.covers_all else step.refusals
        if not all(map(_fits, forms, runs)):
            self.refusals = [*self.refusals, "a tensor has too many columns"]
        self.covers_all = not self.refusals
        if not self.covers_all:
            return
        self._step, self._weights = step, [task.tensors[index] for index in members]
        self._factored = [index if task.factors[index] is not None else -1 for index in members]
        self._sums = [
            torch.zeros(form.rows, form.width // run.run, dtype=torch.float32, device="cpu") if run.run > 1 else None
            for form, run in zip(forms, runs, strict=True)
        ]
        read = [weight if sums is None else sums for weight, sums in zip(self._weights, self._sums, strict=True)]
        self._reduce = _reduce_table(task, members, read, list(map(condensed, forms, runs)))
        self._argue(task, runs)

    def run(self, library: ctypes.CDLL, factors: Sequence[Tensor | None], count: int) -> bool:
        """Runs `count` cycles; False if a factor, a sum or an entry is out of range: nothing changes then but for a rounding.

        Args:
            library: the compiled kernels.
            factors: by what the counted tensors are multiplied before their norm is taken.
            count: how many.
        """
        alive = []
        for position, index in enumerate(self._factored):
            values = factors[index] if index >= 0 else None
            if values is not None:
                alive.append(row_factors(values))
                self._condensed[position].row_factor = alive[-1].data_ptr()
        self._arguments.step = ctypes.addressof(self._step.prepared())
        self._arguments.count = count
        stopped = library.fxenorm_cycles(ctypes.addressof(self._arguments))
        del alive
        return not stopped

    def _argue(self, task: CycleTask, runs: Sequence[Run]) -> None:
        """Sets what the kernels are given, and keeps alive what that points to."""
        reduce, count = self._reduce, task.program.num_scales
        powers, size = self._link(task.program.p, runs)
        stages = _stages(reduce, count, task.groups)
        self._arrays: dict[str, NDArray[Any]] = {
            **stages,
            "link_ends": reduce.link_ends,
            "factor_link_ends": self._link_ends,
            "matrices": reduce.matrices,
            "tiles": reduce.tiles,
            "links": reduce.links,
            "factor_links": self._links,
            "powers": np.array(powers, dtype=np.float64),
            "work": reduce.work,
            "power_table": np.ones((len(powers), count + 1)),
            "totals": np.ones(count),
            "factors": np.ones(size, dtype=np.float32),
            "claimed": np.zeros(len(reduce.tiles), dtype=np.uint8),
        }
        self._arguments = CyclesArguments(
            **{name: array.ctypes.data for name, array in self._arrays.items()},
            condensed=ctypes.addressof(self._condensed),
            matrix_count=len(reduce.matrices),
            tile_count=len(reduce.tiles),
            link_count=len(reduce.links),
            factor_link_count=len(self._links),
            power_count=len(powers),
            stage_count=len(stages["stages"]),
        )

    def _link(self, p: float, runs: Sequence[Run]) -> tuple[list[float], int]:
        """Sets the links from powers of variables to factors of rows and columns; returns these powers and how many factors."""
        links: list[tuple[int, ...]] = []
        ends: list[int] = []
        powers: dict[float, int] = {}
        size = 0
        self._condensed = (Condensed * len(runs))()
        for position, (form, run) in enumerate(zip(self._reduce.forms, runs, strict=True)):
            weights, sums, one = self._weights[position], self._sums[position], self._condensed[position]
            # Entries of sums are of degree p in the factors.
            degree = 1.0 if sums is None else p
            places = []
            for terms in (form.row_terms, form.column_terms):
                for number, (coefficient, ids) in enumerate(terms):
                    power = powers.setdefault(coefficient * degree, len(powers))
                    links.append((size, ids.size, ids.ctypes.data, power, int(number == 0)))
                places.append(size if terms else -1)
                size += terms[0][1].size if terms else 0
            ends.append(len(links))
            one.source, one.dtype, one.width = weights.data_ptr(), TYPES[weights.dtype], form.width * run.run
            one.run, one.inner, one.data = run.run, int(run.inner), None if sums is None else sums.data_ptr()
            one.row_place, one.column_place = places
        self._links, self._link_ends = np.array(links, dtype=np.int64).reshape(-1, 5), np.array(ends, dtype=np.int64)
        return list(powers), size


def _stages(reduce: ReduceTable, count: int, groups: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
    """Returns by field of `CyclesArguments` the stages of a cycle, and the lists into which they point.

    Args:
        reduce: what is read.
        count: the number of variables.
        groups: (K,) as `CycleTask.groups`.
    """
    labels = np.zeros(count, dtype=np.int64) if groups is None else groups
    order = np.argsort(labels, kind="stable")
    carried: dict[int, list[int]] = {}
    for matrix, form in enumerate(reduce.forms):
        ids = np.concatenate([order[:0], *(ids for _, ids in (*form.row_terms, *form.column_terms))])
        for label in np.unique(labels[ids[ids < count]]).tolist():
            carried.setdefault(label, []).append(matrix)
    ordered, rows, tiles = labels[order], reduce.matrices, [np.zeros(0, dtype=np.int64)]
    stages: list[tuple[int, ...]] = []
    matrices: list[int] = []
    for label in sorted(carried):
        own = carried[label]
        tiles += [np.arange(rows[matrix, 8], rows[matrix, 9]) for matrix in own]
        first, read = len(matrices), stages[-1][5] if stages else 0
        matrices += own
        variables = np.searchsorted(ordered, [label, label + 1]).tolist()
        stages.append((*variables, first, len(matrices), read, read + sum(map(len, tiles[-len(own) :]))))
    return {
        "stages": np.array(stages, dtype=np.int64).reshape(-1, 6),
        "stage_variables": np.ascontiguousarray(order, dtype=np.int64),
        "stage_matrices": np.array(matrices, dtype=np.int64),
        "stage_tiles": np.concatenate(tiles).astype(np.int64),
    }


def _refusals(task: CycleTask, members: Sequence[int]) -> list[str]:
    """Returns why there are no kernels for several cycles of a task, each reason once."""
    found = [] if members else ["nothing is counted"]
    if task.powers_of_two is not None or task.deadband:
        found.append("several cycles in powers of two or with a dead band are rounded one by one")
    if task.program.p not in _POWERS:
        found.append(f"sums over kernels of p={task.program.p:g} need a power an entry in each cycle")
    kinds = dict.fromkeys(task.tensors[index].dtype for index in members)
    return found + [f"several cycles take no {kind}" for kind in kinds if kind not in _TYPES]


def _fits(form: MatrixForm, run: Run) -> bool:
    """Whether a tile of sums can be made of whole rows."""
    return run.run == 1 or form.width // run.run <= _WIDEST


def _reduce_table(task: CycleTask, members: list[int], read: list[Tensor], forms: list[MatrixForm]) -> ReduceTable:
    """Returns the table of what the cycles read: some of the weights, and sums over the kernels of the others."""
    # A table takes its members from the last to the first, as the step's has.
    order, last_first = members[::-1], read[::-1]
    program = task.program
    part = replace(program, blocks=tuple(program.blocks[index] for index in order), log_weights=program.log_weights[order])
    none: list[Tensor | None] = [None] * len(read)
    return ReduceTable(part, last_first, none, reduce_signature(last_first, none), forms[::-1])

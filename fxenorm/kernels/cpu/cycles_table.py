"""The tables of several cycles for the compiled kernels: sums over the kernels of convolutions, and what they are weighted by."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..layout import MatrixForm
from ..program import ReduceProgram
from .executor import CompiledBackend
from .step_table import StepTable, fields
from .tables import ReduceTable, reduce_signature, row_factors

__all__ = ["CyclesTable"]

_WIDEST = 20_000
_POWERS = (1.0, 2.0, 4.0)
_TYPES = {torch.float32: 0, torch.bfloat16: 2}


class _Condensed(ctypes.Structure):
    """`Condensed` of ``native/tables.h``."""

    _fields_ = [
        *fields(ctypes.c_void_p, "source"),
        *fields(ctypes.c_int64, "dtype width run inner"),
        *fields(ctypes.c_void_p, "data row_factor"),
        *fields(ctypes.c_int64, "row_place column_place"),
    ]


class _Arguments(ctypes.Structure):
    """`Cycles` of ``native/tables.h``."""

    _fields_ = [
        *fields(ctypes.c_void_p, "step matrices condensed tiles links factor_links powers"),
        *fields(ctypes.c_int64, "matrix_count tile_count link_count factor_link_count power_count count"),
        *fields(ctypes.c_void_p, "work power_table totals factors claimed"),
    ]


@dataclass(frozen=True)
class _Run:
    """Columns of a table that carry the same: `run` in a row (`inner`), or one in each of `run` equal parts of the row."""

    run: int
    inner: bool


class CyclesTable:
    """Several Jacobi cycles on tensors that stay where they are.

    Args:
        step: the table of one cycle: its targets are scaled in the end.
        program: on the CPU.
        tensors, factors: as `Backend.reduce` takes them.

    Attributes:
        complete: whether the kernels can do it: p of 1, 2 or 4, weights of float32 and bfloat16.
    """

    def __init__(
        self, step: StepTable, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]
    ) -> None:
        members = step.reduce.members if step.complete else []
        self.complete = step.complete and bool(members) and program.p in _POWERS
        self.complete = self.complete and all(tensors[index].dtype in _TYPES for index in members)
        if not self.complete:
            return
        # A tile of sums must be made of whole rows.
        runs = [_run_of(form) for form in step.reduce.forms]
        self.complete = all(
            run.run == 1 or form.width // run.run <= _WIDEST for form, run in zip(step.reduce.forms, runs, strict=True)
        )
        if not self.complete:
            return
        self._step, self._weights = step, [tensors[index] for index in members]
        self._factored = [index if factors[index] is not None else -1 for index in members]
        self._sums = [
            torch.zeros(form.rows, form.width // run.run, dtype=torch.float32, device="cpu") if run.run > 1 else None
            for form, run in zip(step.reduce.forms, runs, strict=True)
        ]
        forms = [_condensed(form, run) if run.run > 1 else form for form, run in zip(step.reduce.forms, runs, strict=True)]
        read = [weight if sums is None else sums for weight, sums in zip(self._weights, self._sums, strict=True)]
        # A table takes its members from the last to the first, as the step's has.
        order = members[::-1]
        part = replace(program, blocks=tuple(program.blocks[index] for index in order), log_weights=program.log_weights[order])
        none: list[Tensor | None] = [None] * len(read)
        self._reduce = ReduceTable(part, read[::-1], none, reduce_signature(read[::-1], none), forms[::-1])
        self._argue(program, runs)

    def run(self, backend: CompiledBackend, factors: Sequence[Tensor | None], count: int) -> bool:
        """`count` cycles; False if a factor, a sum or an entry is out of range; nothing changes then but for a rounding.

        Args:
            backend: holds the kernels.
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
        stopped = backend.library.fxenorm_cycles(ctypes.addressof(self._arguments))
        del alive
        return not stopped

    def _argue(self, program: ReduceProgram, runs: Sequence[_Run]) -> None:
        """What the kernels are given."""
        reduce, count = self._reduce, program.num_scales
        links: list[tuple[int, ...]] = []
        powers: dict[float, int] = {}
        size = 0
        self._condensed = (_Condensed * len(runs))()
        for position, (form, run) in enumerate(zip(reduce.forms, runs, strict=True)):
            weights, sums, one = self._weights[position], self._sums[position], self._condensed[position]
            # Entries of sums are of degree p in the factors.
            degree = 1.0 if sums is None else program.p
            places = []
            for terms in (form.row_terms, form.column_terms):
                for number, (coefficient, ids) in enumerate(terms):
                    power = powers.setdefault(coefficient * degree, len(powers))
                    links.append((size, ids.size, ids.ctypes.data, power, int(number == 0)))
                places.append(size if terms else -1)
                size += terms[0][1].size if terms else 0
            one.source, one.dtype, one.width = weights.data_ptr(), _TYPES[weights.dtype], form.width * run.run
            one.run, one.inner, one.data = run.run, int(run.inner), None if sums is None else sums.data_ptr()
            one.row_place, one.column_place = places
        self._links = np.array(links, dtype=np.int64).reshape(-1, 5)
        self._powers = np.array(list(powers), dtype=np.float64)
        self._power_table = np.ones((len(powers), count + 1))
        self._totals, self._factors = np.ones(count), np.ones(size, dtype=np.float32)
        self._claimed = np.zeros(len(reduce.tiles), dtype=np.uint8)
        self._arguments = _Arguments(
            matrices=reduce.matrices.ctypes.data,
            condensed=ctypes.addressof(self._condensed),
            tiles=reduce.tiles.ctypes.data,
            links=reduce.links.ctypes.data,
            factor_links=self._links.ctypes.data,
            powers=self._powers.ctypes.data,
            matrix_count=len(reduce.matrices),
            tile_count=len(reduce.tiles),
            link_count=len(reduce.links),
            factor_link_count=len(self._links),
            power_count=len(powers),
            work=reduce.work.ctypes.data,
            power_table=self._power_table.ctypes.data,
            totals=self._totals.ctypes.data,
            factors=self._factors.ctypes.data,
            claimed=self._claimed.ctypes.data,
        )


def _run_of(form: MatrixForm) -> _Run:
    """The most columns that carry the same, side by side or spread evenly."""
    segments, width = form.segments.size - 1, form.width
    columns = [ids.reshape(segments, width) for _, ids in form.column_terms]
    if not columns:
        return _Run(width, inner=True)
    inner = math.gcd(width, *(_step_of(np.flatnonzero((ids[:, 1:] != ids[:, :-1]).any(0)) + 1) for ids in columns))
    if inner > 1:
        return _Run(inner, inner=True)
    period = next((size for size in _divisors(width) if all(_repeats(ids, size) for ids in columns)), width)
    return _Run(width // period, inner=False)


def _step_of(places: NDArray[np.int64]) -> int:
    """The largest number of which all places are multiples; 0 for none."""
    return int(np.gcd.reduce(places)) if places.size else 0


def _divisors(number: int) -> list[int]:
    """All divisors but the number itself, from the smallest."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)} - {number})


def _repeats(ids: NDArray[np.int32], period: int) -> bool:
    """Whether every row is a repetition of its first `period` entries."""
    return bool((ids[:, period:] == ids[:, :-period]).all())


def _condensed(form: MatrixForm, run: _Run) -> MatrixForm:
    """The table of the sums over what carries the same: one column for each run."""
    width, segments = form.width // run.run, form.segments.size - 1
    terms = []
    for coefficient, ids in form.column_terms:
        by_segment = ids.reshape(segments, form.width)
        chosen = by_segment[:, :: run.run] if run.inner else by_segment[:, :width]
        terms.append((coefficient, np.ascontiguousarray(chosen).reshape(-1)))
    return replace(form, width=width, column_terms=tuple(terms))

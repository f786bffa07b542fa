"""Columns of a table that carry the same variables, as the places of a convolution's kernel do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..layout import MatrixForm

__all__ = ["Run", "condensed", "run_of"]


@dataclass(frozen=True)
class Run:
    """Columns of a table that carry the same: `run` in a row (`inner`), or one in each of `run` equal parts of the row."""

    run: int
    inner: bool


def run_of(form: MatrixForm) -> Run:
    """Returns the most columns that carry the same, side by side or spread evenly."""
    segments, width = form.segments.size - 1, form.width
    columns = [ids.reshape(segments, width) for _, ids in form.column_terms]
    if not columns:
        return Run(width, inner=True)
    inner = math.gcd(width, *(_step_of(np.flatnonzero((ids[:, 1:] != ids[:, :-1]).any(0)) + 1) for ids in columns))
    if inner > 1:
        return Run(inner, inner=True)
    period = next((size for size in _divisors(width) if all(_repeats(ids, size) for ids in columns)), width)
    return Run(width // period, inner=False)


def condensed(form: MatrixForm, run: Run) -> MatrixForm:
    """Returns the table of the sums over what carries the same, one column for each run."""
    if run.run == 1:
        return form
    width, segments = form.width // run.run, form.segments.size - 1
    terms = []
    for coefficient, ids in form.column_terms:
        by_segment = ids.reshape(segments, form.width)
        chosen = by_segment[:, :: run.run] if run.inner else by_segment[:, :width]
        terms.append((coefficient, np.ascontiguousarray(chosen).reshape(-1)))
    return replace(form, width=width, column_terms=tuple(terms))


def _step_of(places: NDArray[np.int64]) -> int:
    """Returns the largest number of which all places are multiples; 0 for none."""
    return int(np.gcd.reduce(places)) if places.size else 0


def _divisors(number: int) -> list[int]:
    """Returns all divisors but the number itself, from the smallest."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)} - {number})


def _repeats(ids: NDArray[np.int32], period: int) -> bool:
    """Whether every row is a repetition of its first `period` entries."""
    return bool((ids[:, period:] == ids[:, :-period]).all())

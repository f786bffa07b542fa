"""Finds directions in which the objective falls for ever, by linear programs on classes of variables that nothing tells apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RescaleError
from .basis import Form, basis_of
from .channel_fields import ChannelFields

__all__ = ["falling_rows", "missing_by_programs"]

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


def missing_by_programs(parts: Iterable[tuple[Any, Ids]], count: int, channels: ChannelFields) -> list[tuple[Form, Form | None]]:
    """Returns the fields to hold, component by component; see `missing_equations` in the file of that name.

    Args:
        parts: the rows of each component, and its columns.
        count: number of variables; later columns are hubs.
        channels: the fields, in graph order.
    """
    found: list[tuple[Form, Form | None]] = []
    for whole, own in parts:
        rows = whole[:, own]
        added: list[tuple[Form, Form | None]] = []
        while (falling := falling_rows(rows, _local(added, own))).any():
            direction = np.zeros(whole.shape[1], dtype=np.int64)
            direction[own] = _moving(rows[np.flatnonzero(~falling)], _local(added, own))
            form = channels.last_moved(direction[:count])
            if form is None:
                raise RescaleError("the objective has no minimum, and no channel that could be held gives it one")
            added.append(form)
        found += _needed(rows, added, own)
    return found


def _local(found: Sequence[tuple[Form, Form | None]], own: Ids) -> list[Form]:
    """Returns forms over some of the columns only, by position; other variables do not move."""
    forms = []
    for form, _ in found:
        places = np.searchsorted(own, [variable for variable, _ in form]).tolist()
        at = zip(places, form, strict=True)
        forms.append(tuple((place, value) for place, (variable, value) in at if place < own.size and own[place] == variable))
    return forms


def _needed(rows: Any, added: Sequence[tuple[Form, Form | None]], own: Ids) -> list[tuple[Form, Form | None]]:
    """Returns the equations without those that the others make superfluous; the first to be added are the first to go."""
    kept = list(added)
    for one in added if len(added) > 1 else ():
        others = [other for other in kept if other is not one]
        if not falling_rows(rows, _local(others, own)).any():
            kept = others
    return kept


def falling_rows(rows: Any, zero: Sequence[Form] = ()) -> Mask:
    """Returns (rows,) whether a row can fall along a direction in which none rises and some forms stay.

    Args:
        rows: (rows, columns) sparse integers.
        zero: the forms.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, hstack, identity, vstack

    fixed = _forms(zero, rows.shape[1])
    whole = csr_array(vstack([rows, fixed])) if zero else rows
    kind = np.repeat([0, 1], [rows.shape[0], fixed.shape[0]])
    row_class, first_row, small = _quotient(whole, kind)
    flat = kind[first_row] == 0
    below, level = small[np.flatnonzero(flat)], small[np.flatnonzero(~flat)]
    number, width = below.shape
    cost = np.concatenate([np.zeros(width), -np.ones(number)])
    bounds = np.concatenate([np.tile([-np.inf, np.inf], (width, 1)), np.tile([0.0, 1.0], (number, 1))])
    answer = linprog(
        cost,
        A_ub=hstack([below, identity(number)]).tocsr(),
        b_ub=np.zeros(number),
        A_eq=hstack([level, csr_array((level.shape[0], number))]).tocsr() if level.shape[0] else None,
        b_eq=np.zeros(level.shape[0]) if level.shape[0] else None,
        bounds=bounds,
        method="highs",
    )
    if answer.status != 0:
        raise RescaleError(f"whether the objective has a minimum could not be decided: {answer.message}")
    falls = np.zeros(first_row.size, dtype=bool)
    falls[np.flatnonzero(flat)] = answer.x[width:] > 0.5
    return np.asarray(falls[row_class[: rows.shape[0]]])


def _forms(zero: Sequence[Form], columns: int) -> Any:
    """Returns forms as the rows of a sparse matrix."""
    from scipy.sparse import csr_array

    entries = [(number, variable, value) for number, form in enumerate(zero) for variable, value in form]
    row, column, data = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    return csr_array((data, (row, column)), shape=(len(zero), columns))


def _moving(still: Any, zero: Sequence[Form]) -> Ids:
    """Returns (columns,) a direction in general position among those that leave some rows and forms as they are."""
    ends = zip(still.indptr[:-1], still.indptr[1:], strict=True)
    forms = [tuple(zip(still.indices[a:b].tolist(), still.data[a:b].tolist(), strict=True)) for a, b in ends]
    columns = still.shape[1]
    basis = basis_of(columns, (), [*forms, *zero])
    return np.asarray(basis.matrix @ np.random.default_rng(0).integers(1 << 20, 1 << 30, columns))


def _quotient(matrix: Any, kind: Ids) -> tuple[Ids, Ids, Any]:
    """Puts rows and columns into classes that nothing tells apart; returns each row's class, a row of each, and their sums.

    Colours are refined until all rows of a class have equal sums over each class of columns, and the other way round.
    """
    from scipy.sparse import csr_array

    matrix = csr_array(matrix)
    rows, columns = matrix.shape
    row_of = np.repeat(np.arange(rows), np.diff(matrix.indptr))
    row_class, column_class = kind.copy(), np.zeros(columns, dtype=np.int64)
    known = 0
    while True:
        row_class = _refined(row_class, rows, row_of, matrix.data, column_class[matrix.indices])
        column_class = _refined(column_class, columns, matrix.indices, matrix.data, row_class[row_of])
        number = int(row_class.max(initial=-1)) + int(column_class.max(initial=-1)) + 2
        if number == known:
            break
        known = number
    _, first_row = np.unique(row_class, return_index=True)
    chosen = csr_array(matrix[first_row])
    places = np.repeat(np.arange(first_row.size), np.diff(chosen.indptr))
    width = int(column_class.max(initial=-1)) + 1
    small = csr_array((chosen.data, (places, column_class[chosen.indices])), shape=(first_row.size, width))
    small.sum_duplicates()
    return row_class, first_row, small


def _refined(own: Ids, count: int, place: Ids, values: Ids, others: Ids) -> Ids:
    """Splits classes by the values with which each class of the other side is met; returns (count,) the new classes."""
    random = np.random.default_rng(1)
    weights = random.integers(1, 2**62, size=(2, int(others.max(initial=-1)) + 1), dtype=np.uint64)
    found = own
    for some in weights:
        totals = np.zeros(count, dtype=np.uint64)
        np.add.at(totals, place, _mixed(some[others], values))
        totals = totals.view(np.int64)
        found = np.unique(np.stack([found, totals]), axis=1, return_inverse=True)[1].reshape(-1)
    return found.astype(np.int64)


def _mixed(keys: NDArray[np.uint64], values: Ids) -> NDArray[np.uint64]:
    """Returns a number for each key and value, by the finaliser of splitmix64 (Steele, Lea and Flood, 2014).

    That of a value says nothing of that of its negative: sums of these numbers tell rows of opposite signs apart.
    """
    mixed = keys + values.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)

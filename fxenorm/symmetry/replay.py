"""Equations replayed in the order in which a graph imposed them: which of them made how many forms depend on others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from ..field import Ids
from ..field.solution import components

__all__ = ["Losses", "Rows", "lost"]

Row = dict[int, int]
Loss = tuple[int, int, int]
"""(origin, variable, the variable on which it depends or -1)."""


@dataclass(frozen=True)
class Rows:
    """Sparse homogeneous equations.

    Attributes:
        row, variable, value: one entry of an equation each.
        origin: (equations,) who imposed it.
    """

    row: Ids
    variable: Ids
    value: Ids
    origin: Ids


@dataclass(frozen=True)
class Losses:
    """Marked variables that equations made depend on earlier ones, each variable at most once.

    Attributes:
        origin: (losses,) who imposed the equation.
        variable: (losses,) the variable that is no longer free.
        on: (losses,) the first marked variable on which it depends, -1 where it became zero.
    """

    origin: Ids
    variable: Ids
    on: Ids


def lost(rows: Rows, variables: int, marked: NDArray[np.bool_]) -> Losses:
    """Finds the marked variables that equations make depend on others, in ascending order of origins.

    Of variables that come to depend on one another the last one is lost, so that the first of each set stays.

    Equations are taken apart into connected components. Of components that look alike (all channels of a layer do, and those of
    the same place in other layers) one is worked out.

    Args:
        rows: the equations.
        variables: number of variables.
        marked: (variables,) the variables whose rank is meant.

    Returns:
        The losses: as many as the rank of the marked variables falls.

    Example:
        >>> import numpy as np
        >>> ids = np.array([0, 1, 2, 3, 1, 2])   # at 5: a = b, c = d; at 7: b = c
        >>> rows = Rows(np.array([0, 0, 1, 1, 2, 2]), ids, np.array([1, -1, 1, -1, 1, -1]), np.array([5, 5, 7]))
        >>> found = lost(rows, 4, np.ones(4, dtype=bool))
        >>> found.origin.tolist(), found.variable.tolist(), found.on.tolist()
        ([5, 5, 7], [1, 3, 2], [0, 2, 0])
    """
    origin, variable, on = ([np.zeros(0, dtype=np.int64)] for _ in range(3))
    known: dict[bytes, list[Loss]] = {}
    for shifts, part in _kinds(rows, variables, marked):
        for who, what, leader in _losses(part, marked, known):
            origin.append(np.full(len(shifts), who, dtype=np.int64))
            variable.append(what + shifts)
            on.append(leader + shifts if leader >= 0 else np.full(len(shifts), -1, dtype=np.int64))
    return Losses(np.concatenate(origin), np.concatenate(variable), np.concatenate(on))


@dataclass(frozen=True)
class _Component:
    """The entries of connected equations, sorted by origin, then by equation, then by variable.

    Attributes:
        origin: (entries,) who imposed the equation of each.
        row: (entries,) its equation.
        variable, value: (entries,) what stands in it.
    """

    origin: Ids
    row: Ids
    variable: Ids
    value: Ids

    def rows(self) -> list[tuple[int, Row]]:
        """Returns (origin, {variable: coefficient}) of every equation."""
        found: list[tuple[int, Row]] = []
        last = -1
        entries_of = (self.origin.tolist(), self.row.tolist(), self.variable.tolist(), self.value.tolist())
        for who, r, v, c in zip(*entries_of, strict=True):
            if r != last:
                found.append((who, {}))
                last = r
            entries = found[-1][1]
            entries[v] = entries.get(v, 0) + c
            if not entries[v]:
                del entries[v]
        return found


def _losses(part: _Component, marked: NDArray[np.bool_], known: dict[bytes, list[Loss]]) -> list[Loss]:
    """Returns the losses of one component, by those of another that differs in names alone where there is one.

    Only the order of origins and of variables matters, so that one layer of many that are alike says what happens in all.

    Args:
        part: the component.
        marked: the variables whose rank is meant.
        known: what was worked out before, by the places of origins and variables in their order.
    """
    origins, from_origin = np.unique(part.origin, return_inverse=True)
    variables, in_order = np.unique(part.variable, return_inverse=True)
    starts = np.append(True, part.row[1:] != part.row[:-1])
    shape = (from_origin.reshape(-1), starts, in_order.reshape(-1), part.value, marked[part.variable])
    key = b"".join(np.ascontiguousarray(one, dtype=np.int64).tobytes() for one in shape)
    if key not in known:
        rows = part.rows()
        ties = all(len(row) == 1 or (len(row) == 2 and sum(row.values()) == 0) for _, row in rows)
        found = _by_classes(rows, marked) if ties else _by_elimination(rows, marked)
        places = {-1: -1, **{variable: place for place, variable in enumerate(variables.tolist())}}
        known[key] = [(int(np.searchsorted(origins, who)), places[what], places[leader]) for who, what, leader in found]
    names = [*variables.tolist(), -1]
    return [(int(origins[who]), names[what], names[leader]) for who, what, leader in known[key]]


def _kinds(rows: Rows, variables: int, marked: NDArray[np.bool_]) -> Iterable[tuple[Ids, _Component]]:
    """(by how much the variables of each lie higher than here, equations by origin) for each kind of connected component that
    has a marked variable.
    """
    if not rows.row.size:
        return
    anchor = np.zeros(len(rows.origin), dtype=np.int64)
    anchor[rows.row] = rows.variable
    number, label = components(variables, anchor[rows.row], rows.variable)
    lives = np.zeros(number, dtype=bool)
    lives[label[marked]] = True
    of_entry = label[rows.variable]
    kept = np.flatnonzero(lives[of_entry])
    # Rows in the order of their components and, within one, of their origins.
    turn = np.empty(len(rows.origin), dtype=np.int64)
    turn[np.argsort(rows.origin, kind="stable")] = np.arange(len(rows.origin))
    order = kept[np.argsort(of_entry[kept] * len(turn) + turn[rows.row[kept]], kind="stable")]
    row, variable, value, of_entry = rows.row[order], rows.variable[order], rows.value[order], of_entry[order]
    if not row.size:
        return
    begins = np.flatnonzero(np.append(True, of_entry[1:] != of_entry[:-1]))
    ends = np.append(begins[1:], len(row))
    signature = _signatures(rows.origin[row], row, variable, value, begins, marked)
    _, example, kind = np.unique(signature, return_index=True, return_inverse=True)
    lowest = np.minimum.reduceat(variable, begins)
    members = np.split(np.argsort(kind, kind="stable"), np.cumsum(np.bincount(kind))[:-1])
    for number in np.argsort(example).tolist():
        place = example[number]
        part = slice(begins[place], ends[place])
        own = rows.origin[row[part]]
        sequence = np.lexsort((variable[part], row[part], own))
        entries = (one[sequence] for one in (own, row[part], variable[part], value[part]))
        yield lowest[members[number]] - lowest[place], _Component(*entries)


def _signatures(origin: Ids, row: Ids, variable: Ids, value: Ids, begins: Ids, marked: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Returns, by component, a hash of its equations, with variables counted from the first of them."""
    length = np.diff(np.append(begins, len(row)))
    # Variables of one tensor stand in a row, so that components of its channels differ by a shift.
    place = variable - np.repeat(np.minimum.reduceat(variable, begins), length)
    mixed = np.zeros(len(row), dtype=np.uint64)
    for part in (origin, place, value, marked[variable].astype(np.int64)):
        mixed = _scramble(mixed + part.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    first = np.flatnonzero(np.append(True, row[1:] != row[:-1]))
    # In which order one node states its equations does not matter.
    lines = _scramble(np.add.reduceat(mixed, first))
    found: NDArray[np.uint64] = np.add.reduceat(lines, np.searchsorted(first, begins))
    return found


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mixes 64 bits one to one (splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _by_classes(part: Sequence[tuple[int, Row]], marked: NDArray[np.bool_]) -> list[Loss]:
    """Joins the variables that equations make equal to each other or to zero, by union-find."""
    zero = -1
    parent: dict[int, int] = {}
    leaders: dict[int, int | None] = {zero: zero}
    found: list[Loss] = []

    def root(variable: int) -> int:
        while parent.get(variable, variable) != variable:
            parent[variable] = parent.get(parent[variable], parent[variable])
            variable = parent[variable]
        return variable

    for origin, row in part:
        if not row:
            continue
        a, b = [*row, zero][:2]
        a, b = root(a), root(b)
        if a == b:
            continue
        a, b = (b, a) if a == zero else (a, b)
        has = [leader for x in (a, b) if (leader := leaders.get(x, x if x >= 0 and marked[x] else None)) is not None]
        if len(has) == 2:
            found.append((origin, max(has), min(has)))
        parent[a] = b
        leaders[b] = min(has, default=None)
    return found


def _by_elimination(part: Sequence[tuple[int, Row]], marked: NDArray[np.bool_]) -> list[Loss]:
    """Reduces each equation by those before it, and solves it for a variable that is not marked, if it has one."""
    solved: dict[int, Row] = {}
    found: list[Loss] = []
    for origin, row in part:
        left = _reduced(row, solved)
        if not left:
            continue
        pivot = next((variable for variable in left if not marked[variable]), None)
        if pivot is None:
            pivot = max(left)
            found.append((origin, pivot, min(left) if len(left) > 1 else -1))
        solved[pivot] = left
    return found


def _reduced(row: Row, solved: dict[int, Row]) -> Row:
    """`row` without variables that are solved for, divided by its greatest common divisor."""
    left = dict(row)
    waiting = [variable for variable in left if variable in solved]
    while waiting:
        pivot = waiting.pop()
        if pivot not in left:
            continue
        by = solved[pivot]
        ours, theirs = left[pivot], by[pivot]
        common = gcd(ours, theirs)
        ours, theirs = ours // common, theirs // common
        if theirs != 1:
            left = {variable: value * theirs for variable, value in left.items()}
        for variable, value in by.items():
            total = left.get(variable, 0) - ours * value
            if total:
                left[variable] = total
                if variable in solved:
                    waiting.append(variable)
            else:
                left.pop(variable, None)
        common = gcd(*left.values()) if left else 1
        if common > 1:
            left = {variable: value // common for variable, value in left.items()}
    return left

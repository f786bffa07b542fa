"""Counts the channel ends of a model's weights from the equations that the walk met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..field import FIXED, NEVER, End, Equations, Ids, ScaleField, Solution, Term, solve
from .account import AccountRow, ChannelAccount, EndShare, Kind, WeightSide
from .express import FreeFields
from .replay import Rows, lost
from .walk import Walk

__all__ = ["count_ends"]

LARGEST = 1 << 20
"""A weight with more entries has one end for each index of its axes, whatever moves it: one end an entry would cost an id
each, and a million ids are 8 MiB."""

FREE = -1
"""Where a form has no origin that fixed it or tied it."""

TOGETHER = "in and out together"
"""Where the channels that a weight reads and those that it writes carry one scale, which moves no weight."""


def count_ends(
    walk: Walk,
    fields: FreeFields,
    exponents: Mapping[str, tuple[Term, ...]],
    num_scales: int,
    roles: Mapping[str, str],
    seen: int,
    second: int | None,
) -> ChannelAccount:
    """Counts every channel end of every counted weight: free, fixed or tied away.

    Args:
        walk: the walk, with its equations and the ends that it noted.
        fields: those of parameters, by the solution of these equations.
        exponents: by parameter, the final exponents.
        num_scales: number of scales.
        roles: by parameter, its role; "weight" and "gamma" are counted.
        seen: number of origins that the solution knows of.
        second: the first origin of the second size, None without one.
    """
    counted = [name for name, role in roles.items() if role in ("weight", "gamma") and name in walk.parameters.fields]
    ends = _ends(walk, counted, exponents, seen)
    solution = fields.solution
    given = _until(walk.equations, solution.matrix.shape[0], seen)
    forms = _Forms(ends, given.count)
    final = forms.matrix @ solution.matrix
    final.eliminate_zeros()
    moves = np.diff(final.indptr) > 0
    account = _Account(walk, second)
    fixed = _fixed(walk, forms, solution, moves, given)
    tied, on = _tied(forms, np.flatnonzero(moves), given, solution)
    row = np.full(forms.size, FREE, dtype=np.int64)
    account.enter(row, fixed, None)
    account.enter(row, tied, "tied")
    unmoved = _unmoved(walk, counted, fields)
    free = solution.matrix.shape[1] - unmoved.shape[1]
    cancels = final @ unmoved
    together = _rank(cancels)
    if together:
        alone = np.flatnonzero(moves & (tied == FREE) & (np.diff(cancels.indptr) > 0))
        row[alone[-together:]] = len(account.rows)
        account.rows.append(AccountRow("tied", together, TOGETHER, "", "", "", "a scale that cancels in every weight"))
    sides = _sides(forms, final, row, on)
    return ChannelAccount(forms.size, free, num_scales - free, tuple(account.rows), sides)


def _sides(forms: _Forms, final: Any, row: Ids, on: Ids) -> tuple[WeightSide, ...]:
    """Returns the ends by weight and side; `row` and `on`: of each form, the account's row, and the form to which it is tied."""
    numbers: dict[tuple[str, str], int] = {}
    owner = [numbers.setdefault((end.parameter, end.side), len(numbers)) for end in forms.ends]
    side = np.repeat(np.array(owner, dtype=np.int64), np.diff(forms.starts))
    other = np.where(on == FREE, FREE, side[on]) if len(on) else on
    # One number for the three: a sort of numbers is many times as fast as one of triples.
    sizes = (len(numbers), int(row.max(initial=FREE)) + 2, len(numbers) + 1)
    keys, counts = np.unique(np.ravel_multi_index((side, row + 1, other + 1), sizes), return_counts=True)
    shares: dict[int, list[EndShare]] = {number: [] for number in numbers.values()}
    for number, position, to, count in zip(*(part.tolist() for part in (*np.unravel_index(keys, sizes), counts)), strict=True):
        shares[number].append(EndShare(count, position - 1, to - 1))
    scales = _scales(final, side, len(numbers))
    return tuple(
        WeightSide(name, "input" if where == "input" else "output", int(scales[number]), tuple(shares[number]))
        for (name, where), number in numbers.items()
    )


def _scales(final: Any, side: Ids, sides: int) -> Ids:
    """Returns, by side, the rank of its forms."""
    part = final.tocoo()
    pairs, place = np.unique(side[part.row] * final.shape[1] + part.col, return_inverse=True)
    scales = np.bincount(pairs // max(final.shape[1], 1), minlength=sides)  # where each form is one variable: the distinct ones
    several = np.zeros(sides, dtype=bool)
    several[side[np.diff(final.indptr) > 1]] = True
    entry = several[side[part.row]]
    if entry.any():
        form, number = np.unique(part.row[entry], return_inverse=True)
        count, every = len(form), np.arange(len(form))
        rows = Rows(
            np.concatenate([every, number]),
            np.concatenate([every, count + place[entry]]),
            np.concatenate([np.ones(count, dtype=np.int64), -part.data[entry]]),
            side[form],
        )
        marked = np.append(np.ones(count, dtype=bool), np.zeros(len(pairs), dtype=bool))
        losses = np.bincount(lost(rows, len(marked), marked).origin, minlength=sides)
        scales = np.where(several, np.bincount(side[form], minlength=sides) - losses, scales)
    return scales


def _ends(walk: Walk, counted: Sequence[str], exponents: Mapping[str, tuple[Term, ...]], seen: int) -> list[End]:
    """Returns the ends that contractions noted, and those of the other weights."""
    fields, births = walk.parameters.fields, walk.parameters.births
    noted = [end for end in walk.parameters.ends.found if end.parameter in set(counted) and end.origin < seen]
    known = {end.parameter for end in noted}
    for name in counted:
        if name not in known and births.get(name, 0) < seen:
            noted += _own_ends(name, fields[name], exponents.get(name, ()), births.get(name, 0))
    return noted


def _own_ends(name: str, field: ScaleField, final: Sequence[Term], origin: int) -> list[End]:
    """Returns the ends of a weight that no contraction uses as it is."""
    axes = [axis for axis, size in enumerate(field.shape) if size > 1]
    together = any(sum(size > 1 for size in ids.shape) > 1 for _, ids in final)
    if together and math.prod(field.shape) <= LARGEST:
        terms = tuple((c, np.broadcast_to(ids, field.shape).ravel()) for c, ids in field.terms)
        return [End(name, "output", math.prod(field.shape), terms, origin)]
    found = []
    for axis in axes or [0][: len(field.shape)]:
        terms = tuple((c, _along(ids, axis)) for c, ids in field.terms)
        found.append(End(name, "output", field.shape[axis], terms, origin))
    if not field.shape:
        found.append(End(name, "output", 1, tuple((c, ids.reshape(1)) for c, ids in field.terms), origin))
    return found


def _along(ids: Ids, axis: int) -> Ids:
    """Returns the ids along one axis, at the first place of the others."""
    return ids[tuple(slice(None) if k == axis else 0 for k in range(ids.ndim))]


class _Forms:
    """All ends as one sparse matrix (ends, raw variables)."""

    def __init__(self, ends: Sequence[End], variables: int) -> None:
        from scipy.sparse import coo_array

        self.ends = ends
        self.starts = np.concatenate([[0], np.cumsum([end.size for end in ends])]).astype(np.int64)
        self.size = int(self.starts[-1])
        row, column, value = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for end, start in zip(ends, self.starts, strict=False):
            for coefficient, ids in end.terms:
                wide = np.broadcast_to(ids, (end.size,))
                kept = np.flatnonzero(wide != FIXED)
                row.append(start + kept)
                column.append(wide[kept])
                value.append(np.full(len(kept), coefficient, dtype=np.int64))
        shape = (self.size, variables)
        self.matrix: Any = coo_array((np.concatenate(value), (np.concatenate(row), np.concatenate(column))), shape=shape).tocsr()
        self.matrix.eliminate_zeros()
        self.origin = np.repeat(np.array([end.origin for end in ends], dtype=np.int64), np.diff(self.starts))
        self.reads = np.repeat(np.array([end.side == "input" for end in ends], dtype=bool), np.diff(self.starts))


def _fixed(walk: Walk, forms: _Forms, solution: Solution, moves: Any, given: Equations) -> Ids:
    """Returns (forms,) the origin that was the first to make each form zero, `FREE` for forms that move."""
    still = np.flatnonzero(~moves)
    length = np.diff(forms.matrix.indptr)
    found = np.full(forms.size, FREE, dtype=np.int64)
    # A form that no equation made zero was zero before the weight read it, or the weight itself stays as it is.
    before = still[length[still] == 0]
    births = walk.parameters.births
    end_of = np.searchsorted(forms.starts, before, side="right") - 1
    for number in np.unique(end_of).tolist():
        end, own = forms.ends[number], before[end_of == number]
        places = own - forms.starts[number]
        along = walk.causes.held_along.get(end.origin)
        if end.side == "output":
            found[own] = births.get(end.parameter, end.origin)
        elif along is not None and len(along) == end.size and (along[places] < len(walk.origins)).all():
            found[own] = along[places]
        else:
            found[own] = walk.causes.held_by.get(end.origin, end.origin)
    made = still[length[still] > 0]
    if made.size:
        part = forms.matrix[made]
        latest = np.maximum.reduceat(solution.zero_origin[part.indices], part.indptr[:-1])
        cancel = latest == NEVER
        if cancel.any():
            # The variables move, but their sum does not: an equation for each such form shows who made it so.
            latest[cancel] = _cancelled(forms, made[cancel], given)
        origins, place = np.unique(latest, return_inverse=True)
        sources = [walk.causes.source(origin, walk.origins[origin].reason) for origin in origins.tolist()]
        found[made] = np.array(sources, dtype=np.int64)[place]
    return found


def _cancelled(forms: _Forms, cancel: Ids, given: Equations) -> Ids:
    """Returns the origins that made sums of variables zero, by the solver, with a variable for each sum."""
    start = given.count
    equations = Equations(start + len(cancel), given.ties, given.zeros, list(given.sums))
    part = forms.matrix[cancel]
    for k in range(len(cancel)):
        window = slice(part.indptr[k], part.indptr[k + 1])
        coefficients = (-1, *part.data[window].tolist())
        ids = np.array([start + k, *part.indices[window].tolist()], dtype=np.int64)[:, None]
        equations.sums.append((coefficients, ids, int(forms.origin[cancel[k]])))
    origins = solve(equations).zero_origin[start:]
    return np.where(origins == NEVER, forms.origin[cancel], origins)


def _until(equations: Equations, variables: int, seen: int) -> Equations:
    """Returns the equations of the first origins, on the first variables."""
    return Equations(
        variables,
        [item for item in equations.ties if item[2] < seen],
        [item for item in equations.zeros if item[1] < seen],
        [item for item in equations.sums if item[2] < seen],
    )


def _tied(forms: _Forms, moves: Ids, given: Equations, solution: Solution) -> tuple[Ids, Ids]:
    """Returns, of every form, the origin that was the first to make it depend on those before, and the first of these.

    Both are (forms,), `FREE` where there is none.
    """
    found, on = np.full(forms.size, FREE, dtype=np.int64), np.full(forms.size, FREE, dtype=np.int64)
    part = forms.matrix[moves]
    origin = forms.origin[moves]
    # Most ends are a variable: of those that are the same, all but the first depend on it as soon as they are met.
    simple = np.flatnonzero((np.diff(part.indptr) == 1) & (np.abs(part.data[part.indptr[:-1]]) == 1))
    variable = part.indices[part.indptr[simple]]
    simple = simple[np.lexsort((origin[simple], variable))]
    variable = part.indices[part.indptr[simple]]
    again = np.zeros(len(simple), dtype=bool)
    again[1:] = variable[1:] == variable[:-1]
    leader = np.maximum.accumulate(np.where(again, 0, np.arange(len(simple))))
    found[moves[simple[again]]] = origin[simple[again]]
    on[moves[simple[again]]] = moves[simple[leader[again]]]
    left = np.ones(len(moves), dtype=bool)
    left[simple[again]] = False
    zero = np.append(np.diff(solution.matrix.indptr) == 0, True)
    rows, touched = _alive(given, zero, solution)
    several = np.ones(len(moves), dtype=bool)
    several[simple] = False
    touched[part[np.flatnonzero(several)].indices] = True
    first = simple[~again]
    left[first] = touched[part.indices[part.indptr[first]]]
    kept = np.flatnonzero(left)
    kept = kept[np.argsort(origin[kept], kind="stable")]
    rows = _with_ends(rows, part[kept].tocoo(), origin[kept], zero, solution, given.count)
    losses = lost(rows, given.count + len(kept), np.arange(given.count + len(kept)) >= given.count)
    which = moves[kept[losses.variable - given.count]]
    found[which] = losses.origin
    on[which] = np.where(losses.on < 0, FREE, moves[kept[np.maximum(losses.on - given.count, 0)]]) if which.size else FREE
    return found, on


def _alive(given: Equations, zero: Any, solution: Solution) -> tuple[Rows, Any]:
    """Returns the equations without variables that are zero, and which variables they have.

    An equation that has such variables says what it does of the others once they are all zero.
    """
    since = np.append(np.where(solution.zero_origin == NEVER, 0, solution.zero_origin), 0)
    touched = np.zeros(given.count, dtype=bool)
    row, variable, value, origins = ([np.zeros(0, dtype=np.int64)] for _ in range(4))
    total = 0
    ties = [((1, -1), np.stack([a, b])[:, kept], origin) for a, b, origin in given.ties if (kept := ~zero[a]).any()]
    sums = [(values, ids[:, kept], origin) for values, ids, origin in given.sums if (kept := ~zero[ids].all(0)).any()]
    blocks: list[tuple[tuple[int, ...], Ids, int]] = [*ties, *sums]
    for coefficients, ids, origin in blocks:
        count = ids.shape[1]
        latest = np.full(count, origin, dtype=np.int64)
        for coefficient, variables in zip(coefficients, ids, strict=True):
            present = np.flatnonzero(~zero[variables])
            if len(present) < count:
                latest = np.where(zero[variables], np.maximum(latest, since[variables]), latest)
            touched[variables[present]] = True
            row.append(total + present)
            variable.append(variables[present])
            value.append(np.full(len(present), coefficient, dtype=np.int64))
        origins.append(latest)
        total += count
    return Rows(*(np.concatenate(parts) for parts in (row, variable, value, origins))), touched


def _with_ends(rows: Rows, part: Any, origin: Ids, zero: Any, solution: Solution, variables: int) -> Rows:
    """Returns the equations, and one more for each end: it equals the field that its weight finds there."""
    present = np.flatnonzero(~zero[part.col])
    latest = origin.copy()
    since = solution.zero_origin[part.col]
    late = (since != NEVER) & zero[part.col]
    np.maximum.at(latest, part.row[late], since[late])
    total, ends = len(rows.origin), np.arange(len(origin))
    return Rows(
        np.concatenate([rows.row, total + part.row[present], total + ends]),
        np.concatenate([rows.variable, part.col[present], variables + ends]),
        np.concatenate([rows.value, -part.data[present], np.ones(len(origin), dtype=np.int64)]),
        np.concatenate([rows.origin, latest]),
    )


def _unmoved(walk: Walk, counted: Sequence[str], fields: FreeFields) -> Any:
    """Returns (free variables, dimension) a basis of the rescalings that move no counted weight."""
    equations = Equations(fields.solution.matrix.shape[1])
    for field in fields.of({name: walk.parameters.fields[name] for name in counted}).values():
        field.require_zero(equations)
    return solve(equations).matrix


def _rank(matrix: Any) -> int:
    """Returns the rank of a sparse matrix that has few rows and columns with entries."""
    matrix.eliminate_zeros()
    part = matrix.tocoo()
    if not part.nnz:
        return 0
    rows, columns = np.unique(part.row), np.unique(part.col)
    return int(np.linalg.matrix_rank(np.unique(matrix[rows][:, columns].toarray(), axis=0)))


class _Account:
    """Collects the rows, one a node and kind."""

    def __init__(self, walk: Walk, second: int | None) -> None:
        self.walk = walk
        self.second = second
        self.rows: list[AccountRow] = []

    def enter(self, row: Ids, causes: Ids, kind: Kind | None) -> None:
        """Adds a row for each origin that is the cause of forms, and writes its position into the (forms,) `row` of these."""
        origins, place, counts = np.unique(causes[causes != FREE], return_inverse=True, return_counts=True)
        row[causes != FREE] = len(self.rows) + place
        for number, count in zip(origins.tolist(), counts.tolist(), strict=True):
            self.add(kind, number, count)

    def add(self, kind: Kind | None, number: int, count: int) -> None:
        """Adds the row of one node; without a kind it fixes fields, for its own reason."""
        where, causes = self.walk.origins[number], self.walk.causes
        kind = kind or causes.kind(number, where.operator, where.reason)
        graph = causes.graph(number, self.second) if where.node else ""
        reason = where.reason or ("ties its inputs to what is fixed" if kind == "barrier" else "")
        reason = "" if kind == "tied" else reason
        self.rows.append(AccountRow(kind, count, where.operator, where.node, where.module, where.source, reason, graph))

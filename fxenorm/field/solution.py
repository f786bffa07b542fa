"""Exact integer solution of the equations: every variable as an integer combination of free ones.

Ties are vectorised connected components. What is left (sums from products, attention, sharing) is eliminated in rounds:
in each, a set of equations that share no variable is solved for a variable of coefficient +1 or -1, all at once, as one sparse
product. Equations in which no such variable is left (2a = 3b) are solved per connected component by unimodular
column operations, so that the answer stays in coprime integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .equations import Equations
from .integer_kernel import integer_kernel
from .scale_field import Ids

__all__ = ["NEVER", "Solution", "components", "solve"]

NDBool = np.ndarray[Any, np.dtype[np.bool_]]
"""An array of booleans, one a variable or an equation."""

NEVER = np.iinfo(np.int64).max
"""Origin of a variable that nothing forces to zero."""


@dataclass(frozen=True)
class Solution:
    """Every variable as a combination of free ones.

    Attributes:
        matrix: (variables, free variables) scipy CSR array of int64: variable i = sum_k matrix[i, k] * free variable k.
        zero_origin: (variables,) the origin that first forced a variable to zero, NEVER where none did.
        labels: (variables,) the class of variables that ties make equal.
    """

    matrix: Any
    zero_origin: Ids
    labels: Ids


def components(count: int, first: Ids, second: Ids) -> tuple[int, Ids]:
    """Connected components of `count` nodes under the edges (first, second)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    number, labels = connected_components(graph, directed=False)
    return int(number), labels.astype(np.int64)


def _join(parts: list[Ids]) -> Ids:
    """Concatenates id arrays; no arrays give an empty one."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def solve(equations: Equations) -> Solution:
    """Solves the homogeneous integer system exactly.

    Args:
        equations: the collected equations on `equations.count` variables.

    Returns:
        The solution; `matrix.shape[1]` is the number of free variables.

    Example:
        >>> equations = Equations()
        >>> a, b, c = equations.fresh((2,)), equations.fresh((2,)), equations.fresh((2,))
        >>> equations.require_equal(a, b, origin=0)
        >>> equations.require_zero(c, origin=1)
        >>> solve(equations).matrix.toarray().tolist()
        [[1, 0], [0, 1], [1, 0], [0, 1], [0, 0], [0, 0]]
    """
    from scipy.sparse import csr_array, identity

    count = equations.count
    # The node `count` stands for zero; -1 indexes it, so that ties with a fixed id are zeros.
    tie_a, tie_b = _join([a for a, _, _ in equations.ties]), _join([b for _, b, _ in equations.ties])
    tie_origin = _join([np.full(len(a), origin, dtype=np.int64) for a, _, origin in equations.ties])
    fixed = (tie_a < 0) | (tie_b < 0)
    number, labels = components(count, tie_a[~fixed], tie_b[~fixed])
    origin = np.full(number, NEVER, dtype=np.int64)
    held = np.maximum(tie_a[fixed], tie_b[fixed])
    _force(origin, labels, held[held >= 0], tie_origin[fixed][held >= 0])
    for ids, where in equations.zeros:
        _force(origin, labels, ids, np.full(len(ids), where, dtype=np.int64))

    rows, row_origin = _sum_rows(equations, labels, number)
    # `substitution` expresses classes by classes; it starts as the identity without the classes that are zero.
    substitution = csr_array(identity(number, dtype=np.int64, format="csr"))
    rows, origin, substitution, kept = _eliminate(rows, row_origin, origin, substitution)
    if rows.shape[0]:
        substitution, kept = _solve_rest(rows, substitution, kept, number)
    substitution = substitution[:, np.flatnonzero(kept)]
    matrix = csr_array(substitution[labels])
    matrix.eliminate_zeros()
    return Solution(matrix, origin[labels], labels)


def _force(origin: Ids, labels: Ids, variables: Ids, origins: Ids) -> None:
    """Notes that `variables` are forced to zero, keeping the earliest origin of each class."""
    np.minimum.at(origin, labels[variables], origins)


def _sum_rows(equations: Equations, labels: Ids, number: int) -> tuple[Any, Ids]:
    """Returns the sums as a sparse matrix (equations, classes), with the origin of each row."""
    from scipy.sparse import coo_array

    row, column, value, origins = [], [], [], []
    total = 0
    for coefficients, ids, where in equations.sums:
        number_of_rows = ids.shape[1]
        for coefficient, variables in zip(coefficients, ids, strict=True):
            present = np.flatnonzero(variables >= 0)
            row.append(total + present)
            column.append(labels[variables[present]])
            value.append(np.full(len(present), coefficient, dtype=np.int64))
        origins.append(np.full(number_of_rows, where, dtype=np.int64))
        total += number_of_rows
    matrix = coo_array((_join(value), (_join(row), _join(column))), shape=(total, number)).tocsr()
    matrix.eliminate_zeros()
    return matrix, _join(origins)


def _eliminate(rows: Any, row_origin: Ids, origin: Ids, substitution: Any) -> tuple[Any, Ids, Any, NDBool]:
    """Solves all equations that can be solved for a variable of coefficient +-1; returns those that remain."""
    from scipy.sparse import csr_array

    kept = origin == NEVER
    substitution = _drop_columns(substitution, kept)
    while rows.shape[0]:
        rows = _drop_columns(rows, kept)
        rows, row_origin = _tidy(rows, row_origin)
        length = np.diff(rows.indptr)
        single = np.flatnonzero(length == 1)
        if len(single):
            columns = rows.indices[rows.indptr[single]]
            np.minimum.at(origin, columns, row_origin[single])
            kept[columns] = False
            substitution = _drop_columns(substitution, kept)
            continue
        chosen, pivots = _independent_rows(rows)
        if not len(chosen):
            break
        step = _pivots_replaced(rows[chosen].tocoo(), pivots, kept)
        kept[pivots] = False
        unsolved = np.ones(rows.shape[0], dtype=bool)
        unsolved[chosen] = False
        rows, row_origin = csr_array(rows[np.flatnonzero(unsolved)] @ step), row_origin[unsolved]
        substitution = csr_array(substitution @ step)
    return rows, origin, substitution, kept


def _pivots_replaced(block: Any, pivots: Ids, kept: NDBool) -> Any:
    """Returns the step that solves the equations of `block`, each for its pivot, and leaves the other variables as they are.

    A row says sign * x_pivot + rest = 0 with sign = +-1, so that x_pivot = -sign * rest.

    Args:
        block: (equations, variables) in coordinates.
        pivots: (equations,) the variable that each is solved for.
        kept: (variables,) those that are not zero and not solved for yet.

    Returns:
        (variables, variables) CSR array: row i says what variable i becomes.
    """
    from scipy.sparse import csr_array

    pivot_of_row = pivots[block.row]
    is_pivot = block.col == pivot_of_row
    sign = np.zeros(len(pivots), dtype=np.int64)
    sign[block.row[is_pivot]] = block.data[is_pivot]
    rest = ~is_pivot
    unchanged = kept.copy()
    unchanged[pivots] = False
    diagonal = np.flatnonzero(unchanged)
    values = np.concatenate([np.ones(len(diagonal), dtype=np.int64), -sign[block.row[rest]] * block.data[rest]])
    places = (np.concatenate([diagonal, pivot_of_row[rest]]), np.concatenate([diagonal, block.col[rest]]))
    return csr_array((values, places), shape=(len(kept), len(kept)))


def _drop_columns(matrix: Any, kept: NDBool) -> Any:
    """Sets the entries of all columns that are not kept to zero."""
    if len(matrix.indices):
        matrix.data = np.where(kept[matrix.indices], matrix.data, 0)
        matrix.eliminate_zeros()
    return matrix


def _tidy(rows: Any, row_origin: Ids) -> tuple[Any, Ids]:
    """Divides each row by its greatest common divisor, make its first coefficient positive, drop empty and repeated rows."""
    rows.sum_duplicates()
    rows.eliminate_zeros()
    length = np.diff(rows.indptr)
    rows, row_origin, length = rows[np.flatnonzero(length)], row_origin[length > 0], length[length > 0]
    if not len(length):
        return rows, row_origin
    rows.sort_indices()
    start = rows.indptr[:-1]
    divisor = np.gcd.reduceat(np.abs(rows.data), start) * np.sign(rows.data[start])
    rows.data = rows.data // np.repeat(divisor, length)
    # A hash brings repeated rows together (fixed seed, so that runs agree); only rows that are truly equal are dropped.
    random = np.random.default_rng(0).integers(1, 2**62, size=rows.shape[1], dtype=np.int64)
    key = np.add.reduceat(rows.data * random[rows.indices] ^ (random[rows.indices] >> 7), start)
    order = np.lexsort((row_origin, key))
    first = np.ones(len(order), dtype=bool)
    same = 1 + np.flatnonzero(key[order][1:] == key[order][:-1])
    difference = rows[order[same]] - rows[order[same - 1]]
    difference.eliminate_zeros()
    first[same[np.diff(difference.indptr) == 0]] = False
    keep = np.sort(order[first])
    return rows[keep], row_origin[keep]


def _independent_rows(rows: Any) -> tuple[Ids, Ids]:
    """Rows that have a coefficient +-1 and share no variable with each other, and the variable to solve each for."""
    length = np.diff(rows.indptr)
    start = rows.indptr[:-1]
    uses = np.bincount(rows.indices, minlength=rows.shape[1])
    # Among the unit coefficients take the variable with the fewest equations, then the youngest.
    cost = np.where(np.abs(rows.data) == 1, uses[rows.indices] * np.int64(rows.shape[1] + 1) - rows.indices, NEVER)
    best = np.minimum.reduceat(cost, start)
    solvable = best != NEVER
    row_of = np.repeat(np.arange(rows.shape[0]), length)
    # Variables that occur in one equation only are in nobody's way: all such equations are solved at once.
    alone = solvable & (best < 2 * np.int64(rows.shape[1] + 1) - rows.shape[1])
    if alone.any():
        hit = (cost == best[row_of]) & alone[row_of]
        return row_of[hit], rows.indices[hit].astype(np.int64)
    # A row wins if it comes first in all of its columns; short rows go first, since they fill in least.
    priority = np.empty(rows.shape[0], dtype=np.int64)
    priority[np.lexsort((np.arange(rows.shape[0]), length, ~solvable))] = np.arange(rows.shape[0])
    spread = np.repeat(priority, length)
    minimum = np.full(rows.shape[1], NEVER, dtype=np.int64)
    np.minimum.at(minimum, rows.indices, np.where(np.repeat(solvable, length), spread, NEVER))
    wins = np.minimum.reduceat((minimum[rows.indices] == spread).astype(np.int8), start).astype(bool) & solvable
    chosen = np.flatnonzero(wins)
    hit = (cost == best[row_of]) & wins[row_of]
    pivots = np.zeros(rows.shape[0], dtype=np.int64)
    pivots[row_of[hit]] = rows.indices[hit]
    return chosen, pivots[chosen]


def _solve_rest(rows: Any, substitution: Any, kept: NDBool, number: int) -> tuple[Any, NDBool]:
    """Equations without unit coefficients: an integer basis of the kernel, per connected component."""
    from scipy.sparse import csr_array

    block = rows.tocoo()
    # Rows and columns as the two sides of one graph.
    _, labels = components(rows.shape[0] + number, block.row, rows.shape[0] + block.col)
    row_label = labels[: rows.shape[0]]
    touched = np.zeros(number, dtype=bool)
    touched[block.col] = True
    diagonal = np.flatnonzero(kept & ~touched)
    values, where, to = [np.ones(len(diagonal), dtype=np.int64)], [diagonal], [diagonal]
    kept = kept.copy()
    for label in np.unique(row_label):
        part = rows[np.flatnonzero(row_label == label)]
        columns = np.unique(part.indices)
        basis = integer_kernel(part[:, columns].toarray())
        kept[columns] = False
        # The new free variables take the places of the first columns.
        places = columns[: basis.shape[1]]
        kept[places] = True
        i, k = np.nonzero(basis)
        values.append(basis[i, k])
        where.append(columns[i])
        to.append(places[k])
    step = csr_array((_join(values), (_join(where), _join(to))), shape=(number, number))
    return csr_array(substitution @ step), kept

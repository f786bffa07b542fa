"""Entries of three or more variables, or of larger exponents: the same answer and the same residual by linear programs.

The answer minimises the largest entry, then the largest of those that can still fall, and so on: entries whose dual is positive
stay where they are, and with them all whose exponents are sums of theirs. An entry e meets a value if it has a positive weight in
some combination, with weights >= 0, of the exponents of e and of entries no smaller than the value, whose sum is zero.
"""

from __future__ import annotations

import numpy as np

from .entries import Entries, Floats, Ids, Mask

__all__ = ["exponent_matrix", "lexicographic_least", "meets"]

_ZERO = 1e-9
"""Duals, weights of combinations and remainders of exponents below this are rounding errors: exponents are small integers."""


def exponent_matrix(entries: Entries, variables: Ids) -> Floats:
    """Returns (n, V) the exponents of entries in some variables, which are given in rising order."""
    found = np.zeros((len(entries), len(variables)))
    for ids, coefficients in zip(entries.ids.T, entries.coefficients.T, strict=True):
        some = np.flatnonzero(ids >= 0)
        np.add.at(found, (some, np.searchsorted(variables, ids[some])), coefficients[some])
    return found


def lexicographic_least(exponents: Floats, logs: Floats) -> tuple[Floats, float]:
    """Returns the log-scales for which the sorted entries are least, and by how much an entry is above its level.

    Args:
        exponents: (n, V), of which some combination of all rows with positive weights is zero.
        logs: (n,) log |w|.

    Example:
        >>> least, _ = lexicographic_least(np.array([[1.0], [-2.0]]), np.array([0.0, 3.0]))
        >>> least.tolist()  # s = 3 - 2 s
        [1.0]
    """
    log_scales = np.zeros(exponents.shape[1])
    free, fixed, excess = exponents, np.zeros(len(logs), dtype=bool), 0.0
    directions = np.eye(exponents.shape[1])
    while directions.shape[1]:
        reduced = free @ directions
        moving = ~fixed & (np.abs(reduced).max(axis=1, initial=0.0) > _ZERO)
        if not moving.any():
            break
        here = logs + exponents @ log_scales
        step, level, duals = _least_largest(reduced[moving], here[moving])
        log_scales = log_scales + directions @ step
        tight = np.flatnonzero(moving)[duals > _ZERO]
        fixed[tight] = True
        directions = directions @ _null_space(reduced[tight])
        settled = moving & (np.abs(free @ directions).max(axis=1, initial=0.0) <= _ZERO)
        excess = max(excess, float((logs + exponents @ log_scales)[settled].max(initial=-np.inf) - level))
    return log_scales, excess


def _least_largest(exponents: Floats, logs: Floats) -> tuple[Floats, float, Floats]:
    """Returns the step that makes the largest entry least, its value then, and (n,) the duals."""
    from scipy.optimize import linprog

    count, size = exponents.shape
    goal = np.append(np.zeros(size), 1.0)
    rows = np.concatenate([exponents, -np.ones((count, 1))], axis=1)
    found = linprog(goal, A_ub=rows, b_ub=-logs, bounds=[(None, None)] * (size + 1), method="highs-ds")
    if found.status != 0:
        # Nothing bounds the largest entry from below: all of these stay where they are.
        return np.zeros(size), float(logs.max()), np.ones(count)
    return found.x[:-1], float(found.x[-1]), -found.ineqlin.marginals


def _null_space(rows: Floats) -> Floats:
    """Returns (V, V - rank) an orthonormal basis of the directions along which no row moves."""
    _, sizes, directions = np.linalg.svd(rows, full_matrices=True)
    rank = int((sizes > _ZERO * max(1.0, sizes.max(initial=0.0))).sum())
    return np.asarray(directions[rank:].T)


def meets(exponents: Floats, logs: Floats) -> Floats:
    """Returns (n,) the largest value that each entry meets, at most its own; -inf where it meets none."""
    order = np.argsort(-logs, kind="stable")
    values, ranks = np.unique(-logs[order], return_inverse=True)
    found = np.full(len(logs), -np.inf)
    waiting: list[tuple[Ids, Floats, int, int]] = [(np.arange(len(order), dtype=np.int64), exponents[order], 0, len(values))]
    while waiting:
        rows, left, low, high = waiting.pop()
        if not len(rows):
            continue
        middle = (low + high) // 2 if high - low > 1 else high
        larger = ranks[rows] < middle
        joined = np.zeros(len(rows), dtype=bool)
        joined[larger] = _in_combinations(left[larger])
        if high - low == 1:
            found[rows[joined]] = -values[low]
            continue
        waiting.append((rows[joined], left[joined], low, middle))
        rest = left[~joined]
        if joined.any():
            directions = _null_space(left[joined])
            rest = rest @ directions @ directions.T
        settled = np.abs(rest).max(axis=1, initial=0.0) <= _ZERO
        rows = rows[~joined]
        found[rows[settled]] = -values[ranks[rows[settled]]]
        waiting.append((rows[~settled], rest[~settled], middle, high))
    back = np.empty_like(found)
    back[order] = np.minimum(found, logs[order])
    return back


def _in_combinations(exponents: Floats) -> Mask:
    """(n,) whether each row has a positive weight in some combination of the rows, with weights >= 0, that is zero."""
    from scipy.optimize import linprog

    count, size = exponents.shape
    if not count or not size:
        return np.ones(count, dtype=bool)
    # weight = part + more, part <= 1: the largest sum of parts has every part that can be positive at 1.
    rows = np.concatenate([exponents.T, exponents.T], axis=1)
    goal = np.append(-np.ones(count), np.zeros(count))
    bounds = [(0.0, 1.0)] * count + [(0.0, None)] * count
    found = linprog(goal, A_eq=rows, b_eq=np.zeros(size), bounds=bounds, method="highs")
    if found.status != 0:
        return np.zeros(count, dtype=bool)
    return np.asarray(found.x[:count] > 0.5)

"""p = inf by definition: each entry lies on a cycle of entries no smaller, and the sorted entries are least; small problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from .random_plans import Case

Rows = list[dict[int, int]]
"""By entry, the coefficient of each of its variables."""


def entries_of(case: Case, log_scales: np.ndarray) -> tuple[Rows, np.ndarray]:
    """The entries of a case that are not zero and carry a variable, and their logs after a rescaling."""
    rows: Rows = []
    logs: list[float] = []
    for shape, terms, tensor in zip(case.shapes, case.terms, case.tensors, strict=True):
        _add(rows, logs, [(c, np.broadcast_to(ids, shape)) for c, ids in terms], tensor.numpy())
    return rows, _moved(rows, np.array(logs), log_scales)


def entries_of_model(model: nn.Module, plan: Any, names: Sequence[str]) -> tuple[Rows, np.ndarray]:
    """The entries of some parameters as they are."""
    rows: Rows = []
    logs: list[float] = []
    parameters: Mapping[str, torch.Tensor] = dict(model.named_parameters())
    for name in names:
        weight = parameters[name].detach().double().numpy()
        _add(rows, logs, [(c, np.broadcast_to(ids.numpy(), weight.shape)) for c, ids in plan.exponents[name]], weight)
    return rows, np.array(logs)


def _add(rows: Rows, logs: list[float], terms: Sequence[tuple[int, np.ndarray]], weight: np.ndarray) -> None:
    for place in np.ndindex(weight.shape):
        row: dict[int, int] = {}
        for coefficient, ids in terms:
            if ids[place] >= 0:
                row[int(ids[place])] = row.get(int(ids[place]), 0) + coefficient
        row = {variable: value for variable, value in row.items() if value}
        if row and weight[place] != 0:
            rows.append(row)
            logs.append(float(np.log(abs(weight[place]))))


def _moved(rows: Rows, logs: np.ndarray, log_scales: np.ndarray) -> np.ndarray:
    return logs + np.array([sum(value * log_scales[k] for k, value in row.items()) for row in rows])


def on_cycles(rows: Rows, logs: np.ndarray, within: float) -> bool:
    """Whether each entry lies on a cycle of entries no smaller, but for `within`: in the graph of signed variables and zero.

    Entries have at most two variables, whose coefficients are no larger than 2 together.
    """
    names: dict[Any, int] = {}
    tails, heads = [], []
    for row in rows:
        ends = [(k, 1 if value > 0 else -1) for k, value in row.items() for _ in range(abs(value))]
        assert len(ends) <= 2
        (one, sign), other = ends[0], (ends[1] if len(ends) > 1 else None)
        back = "zero" if other is None else (other[0], -other[1])
        for tail, head in ((back, (one, sign)), ((one, -sign), "zero" if other is None else other)):
            tails.append(names.setdefault(tail, len(names)))
            heads.append(names.setdefault(head, len(names)))
    values, tail, head = np.repeat(logs, 2), np.array(tails), np.array(heads)
    for value, one, other in zip(values, tail, head, strict=True):
        kept = values >= value - within
        graph = csr_array((np.ones(kept.sum()), (tail[kept], head[kept])), shape=(len(names), len(names)))
        part = connected_components(graph, directed=True, connection="strong")[1]
        if part[one] != part[other]:
            return False
    return True


def matrix_of(rows: Rows, count: int) -> np.ndarray:
    """(n, K) the exponents."""
    found = np.zeros((len(rows), count))
    for place, row in enumerate(rows):
        for variable, value in row.items():
            found[place, variable] = value
    return found


def in_combination(exponents: np.ndarray, row: int) -> bool:
    """Whether a row has a positive weight in some combination of the rows, with weights >= 0, that is zero."""
    goal = np.zeros(len(exponents))
    goal[row] = -1.0
    answer = linprog(goal, A_eq=exponents.T, b_eq=np.zeros(exponents.shape[1]), bounds=(0.0, 1.0), method="highs")
    return bool(answer.status == 0 and -answer.fun > 1e-9)


def residual_by_definition(exponents: np.ndarray, logs: np.ndarray) -> float:
    """The least r such that each entry is in a combination, which is zero, of itself and of entries no smaller than it less r."""
    worst = 0.0
    for place, value in enumerate(logs):
        below = np.sort(logs[logs <= value])[::-1]
        low, high = 0, len(below) - 1  # more entries never take a combination away
        while low < high:
            middle = (low + high) // 2
            kept = np.flatnonzero(logs >= below[middle])
            if in_combination(exponents[kept], list(kept).index(place)):
                high = middle
            else:
                low = middle + 1
        worst = max(worst, value - below[low])
    return float(worst)


def least_by_definition(exponents: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """(n,) the logs of the entries whose sorted list is least: the largest first, then those that can still fall.

    An entry cannot fall where no step lowers it while all that is settled stays and nothing else passes the value.
    """
    count = exponents.shape[1]
    settled = np.zeros(len(logs), dtype=bool)
    values = np.full(len(logs), np.nan)
    while not settled.all():
        rest = np.flatnonzero(~settled)
        fixed, moved = np.pad(exponents[settled], ((0, 0), (0, 1))), values[settled] - logs[settled]
        limits = np.pad(exponents[rest], ((0, 0), (0, 1)), constant_values=-1.0)
        best = linprog(np.append(np.zeros(count), 1.0), limits, -logs[rest], fixed, moved, (None, None), method="highs")
        assert best.status == 0
        level = best.x[-1]
        caps = level - logs[rest]
        for entry in rest:
            lowest = linprog(exponents[entry], exponents[rest], caps + 1e-11, fixed[:, :-1], moved, (None, None), method="highs")
            if lowest.status == 0 and lowest.fun + logs[entry] > level - 1e-8:
                settled[entry], values[entry] = True, level
        basis = exponents[settled]
        if len(basis):
            _, sizes, directions = np.linalg.svd(basis)
            known = directions[: (sizes > 1e-9).sum()]
            tied = ~settled & (np.abs(exponents - exponents @ known.T @ known).max(axis=1) < 1e-9)
            scales = np.linalg.lstsq(basis, values[settled] - logs[settled], rcond=None)[0]
            values[tied] = (logs + exponents @ scales)[tied]
            settled |= tied
    return values


def sides_of_sets(rows: Rows, logs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """By set of variables that entries above any value hold together: masks of the entries that grow and that shrink with it.

    Entries of at most two variables of opposite signs; a set that is joined to zero stands still.
    """
    count = 1 + max(max(row) for row in rows)
    tails, heads = (np.full(len(rows), count) for _ in range(2))
    for place, row in enumerate(rows):
        for k, value in row.items():
            (heads if value > 0 else tails)[place] = k
    for value in [np.inf, *sorted(set(logs), reverse=True)]:
        kept = logs >= value
        graph = csr_array((np.ones(kept.sum()), (tails[kept], heads[kept])), shape=(count + 1, count + 1))
        parts, part = connected_components(graph, directed=False)
        for one in set(range(parts)) - {part[count]}:
            yield (part[heads] == one) & (part[tails] != one), (part[tails] == one) & (part[heads] != one)

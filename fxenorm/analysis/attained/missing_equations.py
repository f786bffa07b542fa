"""Finds whether the objective has a minimum, and the channels whose fields have to stay for it to have one.

F falls for ever along a direction d with a_e . d <= 0 for every counted entry and < 0 for one. While there is such a direction,
the field of one channel that it moves, the last in graph order, is held; those that turn out not to be needed are given back.

Where every entry is a multiple of a difference or sum of two variables, or of one, entries are arcs between literals (each
variable and its negative) and the fixed node, and the minimum is attained if and only if every arc lies on a cycle (Eaves,
Hoffman, Rothblum and Schneider, 1985). Elsewhere a linear program decides, of one variable for each class of variables that
nothing tells apart (Grohe, Kersting, Mladenov and Selman, 2014).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .basis import Form
from .channel_fields import ChannelFields
from .literal_graph import LiteralGraph
from .recession import missing_by_programs

__all__ = ["missing_equations"]

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


def missing_equations(rows: Any, fixed: Mask, channels: ChannelFields, mixed: bool = False) -> list[tuple[Form, Form | None]]:
    """Returns the fields to hold for a minimum, as forms of the places and, if known, of the plan's variables.

    Args:
        rows: as `ExponentRows.matrix` returns them.
        fixed: (K,) variables that stay at 0 anyway; later columns are hubs.
        channels: the fields, in graph order.
        mixed: whether the places are no variables of the plan, whose forms are asked for.
    """
    if not rows.shape[0]:
        return []
    count, labels = fixed.size, _components(rows)
    lengths = np.diff(rows.indptr)
    row_of = np.repeat(np.arange(rows.shape[0]), lengths)
    hard = lengths > 2
    hard[row_of[np.abs(rows.data) > 1]] = True
    row_label = labels[rows.indices[rows.indptr[:-1]]]
    general = np.zeros(labels.max() + 1, dtype=bool)
    general[row_label[hard]] = True
    graph = LiteralGraph(rows[np.flatnonzero(~general[row_label])])
    rank, summed = channels.ranks()
    bad = np.unique(labels[np.flatnonzero(graph.bad_columns)])
    by_sums = np.zeros_like(general)
    by_sums[labels[:count][summed]] = True
    found: list[tuple[Form, Form | None]] = []
    if bad.size and not by_sums[bad].all():
        mine = np.zeros_like(general)
        mine[bad] = True
        columns = np.flatnonzero((mine & ~by_sums)[labels[:count]])
        held = graph.missing(columns, rank)
        found += [(((variable, 1),), channels.in_plan(int(rank[variable])) if mixed else None) for variable in held]
    asked = general.copy()
    asked[bad[by_sums[bad]]] = True
    return found + missing_by_programs(_parts(rows, labels, asked, by_sums, fixed), count, channels)


def _components(rows: Any) -> Ids:
    """Returns (columns,) the connected component of each column."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Every column of a row is tied to the row's first.
    first = np.repeat(rows.indices[rows.indptr[:-1]], np.diff(rows.indptr))
    ones = np.ones(first.size, dtype=np.int8)
    graph = coo_array((ones, (first, rows.indices)), shape=(rows.shape[1], rows.shape[1]))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _parts(rows: Any, labels: Ids, asked: Mask, by_sums: Mask, fixed: Mask) -> Iterable[tuple[Any, Ids]]:
    """Yields the rows and columns of the components that need a program; those that fields may tie together are one."""
    free = np.append(~fixed, np.ones(rows.shape[1] - fixed.size, dtype=bool))
    row_label = labels[rows.indices[rows.indptr[:-1]]]
    if (asked & by_sums).any():
        yield rows[np.flatnonzero(by_sums[row_label])], np.flatnonzero(by_sums[labels] & free)
    order = np.argsort(row_label, kind="stable")
    for label in np.flatnonzero(asked & ~by_sums).tolist():
        begin, end = np.searchsorted(row_label[order], [label, label + 1])
        part = rows[np.sort(order[begin:end])]
        yield part, np.unique(part.indices).astype(np.int64)

"""Arcs that make a graph strongly connected where its own do not: so short that they are the last to matter."""

from __future__ import annotations

import numpy as np

from .entries import Floats, Ids

__all__ = ["connected"]

Graph = tuple[Ids, Ids, Floats]


def connected(count: int, graph: Graph, images: Ids) -> Graph:
    """Returns a graph with arcs between node 0 and the parts that do not reach it, or that it does not reach.

    Few of all entries are known at first, so some parts may lack those that join them to zero; and parts that no entry joins to
    zero are free to move as a whole, which these arcs keep them from.

    Args:
        count: number of nodes n.
        graph: tails, heads and lengths, each (m,).
        images: (n,) the mirror image of each node, whose arcs are to be mirror images; -1 where there is none.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    tails, heads, lengths = graph
    ones = np.ones(len(tails), dtype=np.int8)
    matrix = csr_array((ones, (tails, heads)), shape=(count, count))
    total, part = connected_components(matrix, directed=True, connection="strong")
    if total == 1:
        return graph
    across = part[tails] != part[heads]
    first = np.full(total, count, dtype=np.int64)
    np.minimum.at(first, part, np.arange(count, dtype=np.int64))
    entered, left = (np.isin(first, first[part[nodes[across]]]) for nodes in (heads, tails))
    entered[part[0]] = left[part[0]] = True
    below, above = first[~entered], first[~left]
    mirrored_below, mirrored_above = images[below], images[above]
    below = np.unique(np.concatenate([below, mirrored_above[mirrored_above >= 0]]))
    above = np.unique(np.concatenate([above, mirrored_below[mirrored_below >= 0]]))
    size = float(np.abs(lengths).max(initial=0.0))
    short = np.full(len(below) + len(above), -2.0 * (count + 1) * (size + 1.0))
    zeros = np.zeros(len(short), dtype=np.int64)
    return (
        np.concatenate([tails, zeros[: len(below)], above]),
        np.concatenate([heads, below, zeros[: len(above)]]),
        np.concatenate([lengths, short]),
    )

"""Entries of at most two variables with coefficients of one size, as arcs between the variables, their negatives and zero."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LiteralGraph"]

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


class LiteralGraph:
    """Nodes: column k at k, its negative at C + k, zero at 2 C; along an arc a direction may only fall.

    Args:
        rows: (rows, C) sparse, at most two entries of 1 or -1 each.
    """

    def __init__(self, rows: Any) -> None:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        size = self._size = rows.shape[1]
        zero = 2 * size
        starts, lengths = rows.indptr[:-1], np.diff(rows.indptr)
        if rows.shape[0]:
            literal = np.where(rows.data > 0, rows.indices, rows.indices + size).astype(np.int64)
            head = literal[starts]
            tail = np.where(lengths == 2, self._negative(literal[np.minimum(starts + 1, literal.size - 1)]), zero)
        else:
            head = tail = np.zeros(0, dtype=np.int64)
        # The negative of an arc is one too.
        self._tails = np.concatenate([tail, self._negative(head)])
        self._heads = np.concatenate([head, self._negative(tail)])
        ones = np.ones(self._tails.size, dtype=np.int8)
        graph = csr_array((ones, (self._tails, self._heads)), shape=(zero + 1, zero + 1))
        self._count, component = connected_components(graph, directed=True, connection="strong")
        self._component = component.astype(np.int64)

    def _negative(self, nodes: Ids) -> Ids:
        """Returns the negatives of some nodes."""
        size = self._size
        return np.where(nodes == 2 * size, nodes, np.where(nodes < size, nodes + size, nodes - size))

    @cached_property
    def _bad(self) -> Mask:
        """(arcs,) whether an arc lies on no cycle."""
        return np.asarray(self._component[self._tails] != self._component[self._heads])

    @property
    def bad_columns(self) -> Mask:
        """(C,) columns at an end of an arc that lies on no cycle."""
        mask = np.zeros(2 * self._size + 1, dtype=bool)
        mask[self._tails[self._bad]] = mask[self._heads[self._bad]] = True
        return np.asarray(mask[: self._size] | mask[self._size : -1])

    def missing(self, columns: Ids, rank: Ids) -> list[int]:
        """Returns the columns to hold at zero so that every arc lies on a cycle: the last in rank first, none in vain.

        Args:
            columns: all variables of components with an arc that lies on no cycle.
            rank: by column; columns without one come last, by number.
        """
        component, size = self._component, self._size
        ahead = _Neighbours(self._count, component[self._tails[self._bad]], component[self._heads[self._bad]])
        behind = _Neighbours(self._count, component[self._heads[self._bad]], component[self._tails[self._bad]])
        reached, reaching = np.zeros(self._count, dtype=bool), np.zeros(self._count, dtype=bool)
        zero = [int(component[2 * size])]
        ahead.mark(zero, reached)
        behind.mark(zero, reaching)
        held: list[int] = []
        for column in columns[np.lexsort((columns, rank[columns]))][::-1].tolist():
            one, other = int(component[column]), int(component[column + size])
            if one == other or (reached[one] and reaching[one]):
                continue
            held.append(column)
            ahead.mark([one, other], reached)
            behind.mark([one, other], reaching)
        return self._needed(held, zero, ahead, behind)

    def _needed(self, held: list[int], zero: list[int], ahead: _Neighbours, behind: _Neighbours) -> list[int]:
        """Returns the columns without those that others hold between them."""
        literals = np.array(held, dtype=np.int64)
        marked = [*zero, *self._component[literals].tolist(), *self._component[literals + self._size].tolist()]
        below, above = np.zeros(self._count, dtype=bool), np.zeros(self._count, dtype=bool)
        for neighbours, mask in ((ahead, below), (behind, above)):
            neighbours.mark([node for one in marked for node in neighbours.of(one)], mask)
        return [column for column in held if not (below[self._component[column]] and above[self._component[column]])]


class _Neighbours:
    """Follows the arcs of a graph from node to node."""

    def __init__(self, count: int, tails: Ids, heads: Ids) -> None:
        order = np.argsort(tails, kind="stable")
        self._heads = heads[order]
        self._starts = np.searchsorted(tails[order], np.arange(count + 1)).tolist()

    def of(self, node: int) -> list[int]:
        """Returns the nodes to which the arcs of a node lead, each once."""
        return list(dict.fromkeys(self._heads[self._starts[node] : self._starts[node + 1]].tolist()))

    def mark(self, nodes: Sequence[int], mask: Mask) -> None:
        """Marks some nodes and all that are reached from them; nodes that are marked already have been followed."""
        pending = [node for node in nodes if not mask[node]]
        mask[pending] = True
        while pending:
            for node in self.of(pending.pop()):
                if not mask[node]:
                    mask[node] = True
                    pending.append(node)

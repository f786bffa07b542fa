"""Terms of a field merged entry by entry: terms that cancel vanish, and constant terms are seen to be constant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .scale_field import FIXED, Ids, Term, compress, simplify

__all__ = ["merge_entries"]


def merge_entries(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Merges the terms of one shape wherever an entry carries one variable in two of them; the field is the same.

    Terms that meet nowhere are returned as they are.

    Example:
        >>> import numpy as np
        >>> merge_entries([(1, np.array([0, 1])), (1, np.array([1, 0])), (-1, np.array([0, 0])), (-1, np.array([1, 1]))])
        ()
    """
    found = simplify(terms)
    while len(found) > 1:
        by_shape: dict[tuple[int, ...], list[Term]] = {}
        for coefficient, ids in found:
            by_shape.setdefault(ids.shape, []).append((coefficient, ids))
        meeting = [shape for shape, members in by_shape.items() if _meet(members)]
        if not meeting:
            return found
        for shape in meeting:
            by_shape[shape] = _merged(shape, by_shape[shape])
        found = simplify(term for members in by_shape.values() for term in members)
    return found


def _meet(members: Sequence[Term]) -> bool:
    """Whether some entry carries one variable in two terms."""
    return any(
        bool(((one == other) & (one != FIXED)).any())
        for position, (_, one) in enumerate(members)
        for _, other in members[position + 1 :]
    )


def _merged(shape: tuple[int, ...], members: Sequence[Term]) -> list[Term]:
    """Terms of one shape in which every entry carries each of its variables once: by coefficient and, among equals, by id."""
    ids = np.concatenate([term_ids.reshape(-1) for _, term_ids in members])
    size = ids.size // len(members)
    entries = np.tile(np.arange(size), len(members))
    values = np.repeat(np.array([coefficient for coefficient, _ in members], dtype=np.int64), size)
    entries, ids, values = _summed(entries[ids != FIXED], ids[ids != FIXED], values[ids != FIXED])
    order = np.lexsort((ids, values, entries))
    entries, ids, values = entries[order], ids[order], values[order]
    first = np.append(True, (entries[1:] != entries[:-1]) | (values[1:] != values[:-1])) if ids.size else np.zeros(0, dtype=bool)
    begins = np.flatnonzero(first)
    ranks = np.arange(ids.size) - np.repeat(begins, np.diff(np.append(begins, ids.size)))
    found = []
    for value, rank in sorted({(int(value), int(rank)) for value, rank in np.unique(np.stack([values, ranks]), axis=1).T}):
        chosen = (values == value) & (ranks == rank)
        array = np.full(size, FIXED, dtype=np.int64)
        array[entries[chosen]] = ids[chosen]
        found.append((value, compress(array.reshape(shape))))
    return found


def _summed(entries: Ids, ids: Ids, values: Ids) -> tuple[Ids, Ids, Ids]:
    """Adds up the coefficients of one variable in one entry, and drops the sums that are 0. There is one at least."""
    order = np.lexsort((ids, entries))
    entries, ids, values = entries[order], ids[order], values[order]
    begins = np.flatnonzero(np.append(True, (entries[1:] != entries[:-1]) | (ids[1:] != ids[:-1])))
    totals = np.add.reduceat(values, begins)
    left = totals != 0
    return entries[begins][left], ids[begins][left], totals[left]

"""From the walk's raw variables to the final ones: exponents in free variables, numbered group by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..field import Equations, Ids, ScaleField, Solution, Term, compress, simplify, solve
from .repeated_rows import RepeatedRows, ShortField, ShortFields

__all__ = ["Expander", "FreeFields", "coprime_signs", "group_order", "redundant_variables"]


class Expander:
    """Rewrites ids of raw variables as terms over the columns of an integer matrix (one raw variable a row)."""

    def __init__(self, matrix: Any, divisor: Ids | None = None) -> None:
        """Keeps the matrix; `divisor`: by column, the unit of its exponents, which are divisible by it in every parameter."""
        matrix.sort_indices()
        self._start, self._column, self._value = matrix.indptr[:-1], matrix.indices.astype(np.int64), matrix.data.astype(np.int64)
        self._length = np.diff(matrix.indptr)
        # Almost every variable is one free variable, or zero: one look-up in a table.
        self._simple = np.full(len(self._length) + 1, -1, dtype=np.int64)
        self._coefficient = np.zeros(len(self._length) + 1, dtype=np.int64)
        one = np.flatnonzero(self._length == 1)
        self._simple[one] = self._column[self._start[one]]
        self._coefficient[one] = self._value[self._start[one]]
        self._many = np.append(self._length > 1, False)
        self._plain = bool((self._length <= 1).all()) and bool((self._value == 1).all())
        self._cache: dict[int, tuple[Ids, list[Term]]] = {}
        self._divisor = None if divisor is None or not (divisor > 1).any() else np.append(divisor, 1)

    def terms(self, terms: Iterable[Term]) -> tuple[Term, ...]:
        """Returns the same linear form over the matrix's columns."""
        result: list[Term] = []
        for coefficient, ids in terms:
            result += [(coefficient * c, expanded) for c, expanded in self._expand(ids)]
        return simplify(result if self._divisor is None else self._divide(result, self._divisor))

    @staticmethod
    def _divide(terms: Iterable[Term], divisor: Ids) -> list[Term]:
        """Counts each variable in its own unit; activations may carry fractions of it, which are not shown."""
        result: list[Term] = []
        for coefficient, ids in terms:
            unit = divisor[ids]
            for u in np.unique(unit):
                if coefficient % u == 0:
                    result.append((coefficient // int(u), np.where(unit == u, ids, -1)))
        return result

    def _expand(self, ids: Ids) -> list[Term]:
        known = self._cache.get(id(ids))
        if known is not None:
            return known[1]
        rows = RepeatedRows.of([ids])
        if rows is None:
            found = self._expand_entries(ids)
        else:
            small = self._expand_entries(ids[rows.kept])
            found = [(c, expanded if expanded.shape[0] == 1 else expanded[rows.place]) for c, expanded in small]
        # Operators hand id arrays on unchanged, so the same array comes again and again; it is kept alive beside its answer.
        self._cache[id(ids)] = (ids, found)
        return found

    def _expand_entries(self, ids: Ids) -> list[Term]:
        """Returns the terms of every entry by itself."""
        if self._plain:
            return [(1, compress(self._simple[ids]))]
        found: list[Term] = []
        coefficients = self._coefficient[ids]
        # Nearly always all are 1; looking at the ends is cheaper than sorting.
        low, high = (coefficients.min(), coefficients.max()) if coefficients.size else (0, 0)
        for c in [low] if low == high else np.unique(coefficients):
            if c:
                found.append((int(c), compress(np.where(coefficients == c, self._simple[ids], -1))))
        if self._many[ids].any():
            found += self._expand_sums(ids)
        return found

    def _expand_sums(self, ids: Ids) -> list[Term]:
        """Returns terms for entries whose variable is a sum: one for each coefficient and rank among its addends."""
        flat = ids.ravel()
        places = np.flatnonzero(self._many[flat])
        slots: dict[tuple[int, int], Ids] = {}
        for place in places:
            row = flat[place]
            window = slice(self._start[row], self._start[row] + self._length[row])
            seen: dict[int, int] = {}
            for column, value in zip(self._column[window], self._value[window], strict=True):
                rank = seen.get(int(value), 0)
                seen[int(value)] = rank + 1
                slots.setdefault((int(value), rank), np.full(len(flat), -1, dtype=np.int64))[place] = column
        return [(value, slots[value, rank].reshape(ids.shape)) for value, rank in sorted(slots, reverse=True)]


class FreeFields:
    """The fields of parameters in the free variables of a solution, each worked out once.

    Attributes:
        solution: the solution.
    """

    def __init__(self, solution: Solution, short: ShortFields) -> None:
        self.solution = solution
        self._short = short
        self._expander = Expander(solution.matrix)
        self._known: dict[str, ShortField] = {}

    def of(self, fields: Mapping[str, ScaleField]) -> dict[str, ShortField]:
        """Returns each field in free variables, by name."""
        new = self._short.of({name: field for name, field in fields.items() if name not in self._known})
        self._known |= {name: field.over(self._expander) for name, field in new.items()}
        return {name: self._known[name] for name in fields}


def redundant_variables(exponents: Mapping[str, ShortField], count: int) -> Ids:
    """Finds variables that can be fixed to zero without losing a rescaling, as others undo them in every parameter.

    Args:
        exponents: by name, the field.
        count: number of variables.
    """
    equations = Equations(count)
    for field in exponents.values():
        field.require_zero(equations)
    kernel = solve(equations).matrix
    redundant: dict[int, int] = {}
    if kernel.shape[1]:
        length = np.diff(kernel.indptr)
        for row in np.flatnonzero(length == 1)[::-1]:
            if abs(kernel.data[kernel.indptr[row]]) == 1:
                redundant.setdefault(int(kernel.indices[kernel.indptr[row]]), int(row))
    return np.array(sorted(redundant.values()), dtype=np.int64)


def coprime_signs(exponents: Mapping[str, tuple[Term, ...]], count: int) -> tuple[Ids, Ids]:
    """Returns, by variable, the largest integer that divides all of its exponents, and the sign of the first of them."""
    divisor = np.zeros(count, dtype=np.int64)
    sign = np.zeros(count, dtype=np.int64)
    for terms in exponents.values():
        for coefficient, ids in terms:
            present = ids[ids >= 0]
            divisor[present] = np.gcd(divisor[present], abs(coefficient))
            sign[present] = np.where(sign[present] == 0, np.sign(coefficient), sign[present])
    return np.maximum(divisor, 1), np.where(sign == 0, 1, sign)


def varying_axis(ids: Ids) -> int:
    """Returns the axis along which the ids of a term vary: of several the last, but axis 0 only if no other does."""
    axes = [axis for axis, size in enumerate(ids.shape) if size > 1]
    return axes[-1] if axes else 0


def group_order(exponents: Mapping[str, tuple[Term, ...]], count: int, first_seen: Ids) -> tuple[Ids, Ids]:
    """Orders the variables so that those with the same producers and consumers stand together, groups in graph order.

    Args:
        exponents: by name, the terms over the variables.
        count: number of variables.
        first_seen: (count,) a number that grows with the place in the graph where a variable was created.

    Returns:
        (new number of each variable, starts of the groups with the total at the end).
    """
    random = np.random.default_rng(0)
    signature = np.zeros(count, dtype=np.uint64)
    for terms in exponents.values():
        ports: dict[tuple[int, int], list[Ids]] = {}
        for coefficient, ids in terms:
            ports.setdefault((varying_axis(ids), coefficient), []).append(ids[ids >= 0])
        for parts in ports.values():
            # One sum a variable, however often it occurs: numpy assigns, it does not add up.
            signature[np.concatenate(parts)] += random.integers(1, 2**63, dtype=np.uint64)
    _, group = np.unique(signature, return_inverse=True)
    start = np.full(count and group.max() + 1, np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(start, group, first_seen)
    order = np.lexsort((first_seen, start[group])) if count else np.zeros(0, dtype=np.int64)
    number = np.empty(count, dtype=np.int64)
    number[order] = np.arange(count)
    sizes = np.bincount(group)[np.argsort(start)] if count else np.zeros(0, dtype=np.int64)
    return number, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

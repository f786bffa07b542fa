"""The groups that each call carries, and the module boundaries where variables lie: for pairs and for users of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from ..field import Ids, ScaleField, Term, merge_entries
from .express import Expander
from .symmetry import FlowNode, ParameterUse, Role, Site
from .walk.events import Event, WeightRead

__all__ = ["channels_of", "flows_of", "sites_of"]


def flows_of(events: Sequence[Event], expander: Expander, starts: Ids) -> tuple[FlowNode, ...]:
    """Returns the calls of one graph, each with the groups that its outputs carry."""
    cache: dict[int, frozenset[int]] = {}
    # By variable; the last entry is for fixed positions, whose id is -1.
    group_of = np.append(np.repeat(np.arange(len(starts) - 1), np.diff(starts)), len(starts) - 1)

    def carried(terms: tuple[Term, ...]) -> frozenset[int]:
        present = np.zeros(len(starts), dtype=bool)
        for _, expanded in terms:
            present[group_of[expanded]] = True
        return frozenset(np.flatnonzero(present[:-1]).tolist()) if terms else frozenset()

    def groups(terms: tuple[Term, ...]) -> frozenset[int]:
        found: frozenset[int] = frozenset()
        for _, ids in terms:
            key = id(ids)
            if key not in cache:
                cache[key] = carried(expander.terms([(1, ids)]))
            found |= cache[key]
        return found

    return tuple(
        FlowNode(
            name=event.origin.node,
            operator=event.origin.operator,
            module=event.origin.module,
            source=event.origin.source,
            inputs=event.inputs,
            carried=frozenset().union(*(groups(output.terms) for output in (*event.outputs, *event.picked))),
            parameters=tuple(ParameterUse(name, cast(Role, role)) for name, role in event.roles),
        )
        for event in events
    )


def channels_of(events: Mapping[str, Sequence[Event]], expander: Expander) -> tuple[tuple[Term, ...], ...]:
    """Returns the fields of the activations that layers read and write, in graph order; each of them once, at its last place."""
    found: dict[tuple[Any, ...], tuple[Term, ...]] = {}
    for calls in events.values():
        ends: set[int] = set()
        for position, event in enumerate(calls):
            if any(role in ("weight", "gamma") for _, role in event.roles):
                ends.update((position, *event.inputs))
        for position in sorted(ends):
            for field in (*calls[position].outputs, *calls[position].picked):
                terms = merge_entries(expander.terms(field.terms))
                key = tuple((coefficient, ids.shape[-1:], ids.tobytes()) for coefficient, ids in terms)
                if terms:
                    found.pop(key, None)
                    found[key] = terms
    return tuple(found.values())


def sites_of(events: Mapping[str, Sequence[Event]], expander: Expander) -> tuple[Site, ...]:
    """Returns every module boundary that carries variables along one axis, in graph order, without repetitions.

    Between them stands, by parameter, each activation that a function multiplies by it, also where it carries none.
    """
    found = _Sites(expander)
    for calls in events.values():
        readers: list[set[tuple[str, int]]] = [set() for _ in calls]
        for event in calls:
            for source in event.inputs:
                readers[source].add((event.origin.module, event.origin.call))
        for event, modules in zip(calls, readers, strict=True):
            own = (event.origin.module, event.origin.call)
            for source in event.inputs:
                origin = calls[source].origin
                if not _inside((origin.module, origin.call), own):
                    found.add(calls[source], own, "input")
            for read in event.reads:
                found.add_read(read)
            if not modules or any(not _inside(reader, own) for reader in modules):
                found.add(event, own, "output")
    return tuple(found.sites)


def _inside(place: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether a call of a module is that of the other, or the module is one of its submodules."""
    module, within = place[0], other[0]
    return place == other or within == "" or module.startswith(within + ".")


_Rows = tuple[dict[tuple[int, bytes], int], bool]


class _Sites:
    """Collects sites, each once.

    Attributes:
        sites: those found so far, in order.
    """

    def __init__(self, expander: Expander) -> None:
        self.sites: list[Site] = []
        self._expander = expander
        self._known: dict[tuple[str, int, Any], dict[Any, int]] = {}
        # By identity, as most activations are read at several boundaries.
        self._rows_of: dict[int, _Rows] = {}

    def add(self, event: Event, place: tuple[str, int], direction: Literal["input", "output"]) -> None:
        """Notes the axes along which the event's outputs carry variables, as seen at a boundary of a call of a module."""
        for field in event.outputs:
            rows, whole = self._rows(field)
            number = self._number((*place, direction), rows, whole) if any(rows.values()) else None
            for (axis, content), coefficient in rows.items():
                if number is not None and coefficient:
                    variables = np.frombuffer(content, dtype=np.int64)
                    self.sites.append(
                        Site(place[0], direction, axis, variables, coefficient, place[1], number, len(field.shape), whole)
                    )

    def add_read(self, read: WeightRead) -> None:
        """Notes the axes along which an activation that is multiplied by a parameter carries variables, or that none does."""
        rows, whole = ({}, False) if read.field is None else self._rows(read.field)
        number = self._number((read.parameter, read.call, "operand"), {**rows, (-1, b""): read.part}, whole)
        if number is None:
            return
        place = (read.call, number, len(read.shape), whole, read.part)
        for (axis, content), coefficient in rows.items():
            if coefficient:
                variables = np.frombuffer(content, dtype=np.int64)
                self.sites.append(Site(read.parameter, "operand", axis, variables, coefficient, *place))
        if not any(rows.values()):
            fixed = np.full(read.shape[read.axis], -1, dtype=np.int64)
            self.sites.append(Site(read.parameter, "operand", read.axis, fixed, 1, *place))

    def _rows(self, field: ScaleField) -> _Rows:
        """Returns the coefficients by axis and variables along it, and whether these are all that the field moves by."""
        if id(field) not in self._rows_of:
            self._rows_of[id(field)] = self._new_rows(field)
        return self._rows_of[id(field)]

    def _new_rows(self, field: ScaleField) -> _Rows:
        """Works out the answer of `_rows`."""
        terms = self._expander.terms(field.terms)
        along = [term for term in terms if sum(size > 1 for size in term[1].shape) < 2 and term[1].ndim]
        rows: dict[tuple[int, bytes], int] = {}
        for coefficient, ids in along:
            row = _axis_and_variables(ids, field.shape)
            rows[row] = rows.get(row, 0) + int(coefficient)
        return rows, len(along) == len(terms)

    def _number(self, place: tuple[str, int, str], rows: dict[tuple[int, bytes], int], whole: bool) -> int | None:
        """Returns which of the activations at a place one is that moves so; None: it is known."""
        known = self._known.setdefault(place, {})
        key = (frozenset(rows.items()), whole)
        if key in known:
            return None
        known[key] = len(known)
        return known[key]


def _axis_and_variables(ids: Ids, shape: Sequence[int]) -> tuple[int, bytes]:
    """Returns the axis of a term that varies along at most one, and the variable of each position there."""
    axis = next((axis for axis, size in enumerate(ids.shape) if size > 1), ids.ndim - 1)
    variables = np.broadcast_to(ids.reshape(-1), (shape[axis],)).astype(np.int64)
    return axis, variables.tobytes()

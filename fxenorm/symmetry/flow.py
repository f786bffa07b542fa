"""The groups that each call carries, and the module boundaries where variables lie: for pairs and for users of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from ..field import Ids, Term, merge_entries
from .express import Expander
from .symmetry import FlowNode, ParameterUse, Role, Site
from .walk.events import Event

__all__ = ["channels_of", "flows_of", "sites_of"]


def flows_of(events: Sequence[Event], expander: Expander, starts: Ids) -> tuple[FlowNode, ...]:
    """Returns the calls of one graph, each with the groups that its outputs carry."""
    cache: dict[int, frozenset[int]] = {}
    # By variable; the last entry is for fixed positions, whose id is -1.
    group_of = np.append(np.repeat(np.arange(len(starts) - 1), np.diff(starts)), len(starts) - 1)

    def groups(terms: tuple[Term, ...]) -> frozenset[int]:
        found: frozenset[int] = frozenset()
        for _, ids in terms:
            key = id(ids)
            if key not in cache:
                present = np.zeros(len(starts), dtype=bool)
                for _, expanded in expander.terms([(1, ids)]):
                    present[group_of[expanded]] = True
                cache[key] = frozenset(np.flatnonzero(present[:-1]).tolist())
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
    """Returns every module boundary that carries variables along one axis, in graph order, without repetitions."""
    found: dict[tuple[Any, ...], Site] = {}
    for calls in events.values():
        readers: list[set[str]] = [set() for _ in calls]
        for event in calls:
            for source in event.inputs:
                readers[source].add(event.origin.module)
        for event, modules in zip(calls, readers, strict=True):
            for source in event.inputs:
                origin = calls[source].origin
                if not _inside(origin.module, event.origin.module):
                    _add(found, calls[source], event.origin.module, "input", expander)
            if not modules or any(not _inside(reader, event.origin.module) for reader in modules):
                _add(found, event, event.origin.module, "output", expander)
    return tuple(found.values())


def _inside(module: str, other: str) -> bool:
    """Whether `module` is `other` or one of its submodules."""
    return module == other or other == "" or module.startswith(other + ".")


def _add(found: dict[tuple[Any, ...], Site], event: Event, module: str, direction: Any, expander: Expander) -> None:
    """Notes the axes along which the event's outputs carry variables, as seen at a boundary of `module`."""
    for field in event.outputs:
        for coefficient, ids in expander.terms(field.terms):
            axes = [axis for axis, size in enumerate(ids.shape) if size > 1]
            if len(axes) == 1 or (not axes and ids.ndim):
                axis = axes[0] if axes else ids.ndim - 1
                variables = np.broadcast_to(ids.reshape(-1), (field.shape[axis],))
                key = (module, direction, axis, coefficient, variables.tobytes())
                found.setdefault(key, Site(module, direction, axis, variables, coefficient))

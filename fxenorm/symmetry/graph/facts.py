"""The facts about one traced graph that need no scale field: shared memory, known values, sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ...trace.traced_model import TracedModel
from .arguments import BoundCalls
from .known_values import KnownValues
from .sizes import Sizes
from .storage import Storage

__all__ = ["GraphFacts"]


@dataclass(frozen=True)
class GraphFacts:
    """The facts about one graph, built once and read by all who follow it.

    Attributes:
        traced: the graph.
        storage: which nodes share memory.
        known: values that depend on no model input.
        sizes: integers for all sizes.
        calls: the arguments of its calls.
    """

    traced: TracedModel
    storage: Storage
    known: KnownValues
    sizes: Sizes
    calls: BoundCalls

    @classmethod
    def of(cls, traced: TracedModel) -> GraphFacts:
        """Builds the facts of a graph."""
        storage = Storage(traced.graph)
        known = KnownValues(traced, storage)
        return cls(traced, storage, known, Sizes(known), BoundCalls())

"""Facts about one traced graph that need no scale field: arguments, shared memory, known values, sizes, outputs.

In: a traced model. Out: `GraphFacts`, `Memory` and `OutputEnds`. Imports `field`, `rules` and `trace`.
"""

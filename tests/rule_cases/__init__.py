"""The rows of the per-operator harness: each stands in the file that has the name of its rule's, in fxenorm/rules."""

from __future__ import annotations

from importlib import import_module

from .case import Case

FAMILIES = (
    "homogeneous",
    "complex_numbers",
    "additive",
    "multiplicative",
    "contraction",
    "derivatives",
    "fourier",
    "recurrent",
    "sparse",
    "reduction",
    "pooling",
    "padding",
    "indexing",
    "writing",
    "comparison",
    "normalisation",
    "attention",
    "barriers",
    "outside_operators",
    "constants",
    "structural",
    "cutting",
)

CASES: tuple[Case, ...] = tuple(case for name in FAMILIES for case in import_module(f"{__name__}.{name}").CASES)

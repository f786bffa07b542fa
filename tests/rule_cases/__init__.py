"""The rows of the per-operator harness, by family of laws."""

from __future__ import annotations

from importlib import import_module

from .case import Case

FAMILIES = (
    "homogeneous",
    "additive",
    "multiplicative",
    "contraction",
    "derivatives",
    "fourier",
    "recurrent",
    "sparse",
    "reduction",
    "padding",
    "indexing",
    "writing",
    "comparison",
    "normalisation",
    "barriers",
    "outside",
    "constants",
    "structural",
)

CASES: tuple[Case, ...] = tuple(case for name in FAMILIES for case in import_module(f"{__name__}.{name}").CASES)

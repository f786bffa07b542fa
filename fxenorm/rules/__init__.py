"""The table of scale rules, one file a family. Importing this package fills it.

In: one operator call, with the fields of its arguments. Out: the field of its result, and equations. Imports `field` and
`errors`.
"""

from . import (
    additive,
    attention,
    barriers,
    comparison,
    complex_numbers,
    constants,
    contraction,
    cutting,
    derivatives,
    fourier,
    homogeneous,
    indexing,
    multiplicative,
    normalisation,
    outside_operators,
    padding,
    pooling,
    recurrent,
    reduction,
    sparse,
    structural,
    writing,
)
from .barriers import NO_RULE
from .call import APPROXIMABLE, ROLES, Call, Field, RuleOptions, is_floating
from .laws import barrier
from .registry import Rule, find_rule, iterate_rules, register_rule, scale_rule, supported_operators

__all__ = [
    "APPROXIMABLE",
    "NO_RULE",
    "ROLES",
    "Call",
    "Field",
    "Rule",
    "RuleOptions",
    "additive",
    "attention",
    "barrier",
    "barriers",
    "comparison",
    "complex_numbers",
    "constants",
    "contraction",
    "cutting",
    "derivatives",
    "find_rule",
    "fourier",
    "homogeneous",
    "indexing",
    "is_floating",
    "iterate_rules",
    "multiplicative",
    "normalisation",
    "outside_operators",
    "padding",
    "pooling",
    "recurrent",
    "reduction",
    "register_rule",
    "scale_rule",
    "sparse",
    "structural",
    "supported_operators",
    "writing",
]

"""The table of scale rules, one file a family. Importing this package fills it."""

from . import (
    additive,
    attention,
    barriers,
    comparison,
    complex_numbers,
    constants,
    contraction,
    homogeneous,
    indexing,
    multiplicative,
    normalisation,
    outside_operators,
    padding,
    pooling,
    reduction,
    structural,
)
from .barriers import NO_RULE
from .call import APPROXIMABLE, Call, Field, RuleOptions, is_floating
from .laws import barrier
from .registry import Rule, find_rule, iterate_rules, register_rule, scale_rule, supported_operators

__all__ = [
    "APPROXIMABLE",
    "NO_RULE",
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
    "find_rule",
    "homogeneous",
    "indexing",
    "is_floating",
    "iterate_rules",
    "multiplicative",
    "normalisation",
    "outside_operators",
    "padding",
    "pooling",
    "reduction",
    "register_rule",
    "scale_rule",
    "structural",
    "supported_operators",
]

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
    reduction,
    structural,
)
from .barriers import NO_RULE
from .call import Call, Field, RuleOptions, is_floating
from .laws import barrier
from .registry import Rule, find_rule, iterate_rules, scale_rule

__all__ = [
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
    "reduction",
    "scale_rule",
    "structural",
]

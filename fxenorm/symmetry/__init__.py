"""The walk over traced graphs with the rules: the free scale variables, each parameter's exponents, the barriers."""

from .find import find_symmetry
from .symmetry import Barrier, Exponents, FlowNode, NormFold, ParameterUse, Role, Site, Symmetry, Term

__all__ = [
    "Barrier",
    "Exponents",
    "FlowNode",
    "NormFold",
    "ParameterUse",
    "Role",
    "Site",
    "Symmetry",
    "Term",
    "find_symmetry",
]

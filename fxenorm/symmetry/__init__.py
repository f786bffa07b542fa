"""From traced graphs to the free scale variables, each parameter's exponents, and the barriers.

In: a model and its graphs, one a mode. Out: a `Symmetry`, plain data. Imports `trace`, `rules`, `field` and `errors`.
"""

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

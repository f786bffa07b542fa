"""The vocabulary: scale fields, the equations on them, their exact integer solution.

In: fields, and equations between them. Out: every variable as an integer combination of free ones. Imports nothing of fxenorm.
"""

from .channel_ends import ChannelEnds, End
from .entrywise import merge_entries
from .equations import Equations
from .parameter_view import ParameterFields, ParameterView, Step
from .scale_field import FIXED, AnyField, Ids, ScaleField, Term, align, compress, invert, product, simplify, times
from .solution import NEVER, Solution, solve

__all__ = [
    "FIXED",
    "NEVER",
    "AnyField",
    "ChannelEnds",
    "End",
    "Equations",
    "Ids",
    "ParameterFields",
    "ParameterView",
    "ScaleField",
    "Solution",
    "Step",
    "Term",
    "align",
    "compress",
    "invert",
    "merge_entries",
    "product",
    "simplify",
    "solve",
    "times",
]

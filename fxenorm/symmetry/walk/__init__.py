"""The walk over a traced graph: rules turn the fields of inputs into those of outputs, and into equations.

In: traced graphs, equations and parameter fields. Out: the equations, and by mode the calls that carry fields. Imports `graph`.
"""

from .events import Event, Origin
from .walk import Walk

__all__ = ["Event", "Origin", "Walk"]

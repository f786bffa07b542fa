"""Small networks, a different size on every axis, each with the dimension of its rescaling group derived by hand.

The counts were checked against the rank of the Jacobian of the outputs with respect to the log-parameters.
"""

from __future__ import annotations

from .zoo_base import Case, Net, Residual
from .zoo_branches import BRANCHED
from .zoo_chains import PLAIN
from .zoo_offsets import OFFSETS
from .zoo_traps import BARRIERS, TRAPS
from .zoo_writes import WRITTEN

__all__ = ["BARRIERS", "CASES", "Case", "Net", "Residual"]

CASES: dict[str, Case] = {**PLAIN, **BRANCHED, **TRAPS, **OFFSETS, **WRITTEN}

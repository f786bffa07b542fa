"""The residual: how far any log-scales are from max-balanced, in logarithms of the entries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..channel_sets.limit import limit_of_powers
from ..jacobi import solvable
from ..objective import Objective
from .entries import Floats, Mask, distinct, joined, lacking
from .general import meets
from .levels import bottleneck_levels
from .parts import GeneralPart, general_part
from .source import EntrySource, Levelled, above_levels, first_entries, moving
from .structure import Structure

__all__ = ["residual", "residual_at"]

_LARGEST, _MOST_ROUNDS = 3, 10
"""Entries in and out of each variable that are looked at first, and rounds after which an upper bound is the answer."""

_MOST_ENTRIES = 600
"""The largest part with entries of three or more variables whose residual is worked out: each level takes a linear program."""

_DIGITS = 1e-12
"""Rounding errors of an entry's logarithm, relative to the largest."""


def residual_at(objective: Objective, log_scales: Tensor, stopped: Tensor | None = None) -> float:
    """Returns the residual of an objective over the variables that can move.

    Args:
        objective: with p = inf.
        log_scales: (K,) where.
        stopped: (K,) bool: variables that a limit has stopped, which count as fixed; None: none.
    """
    free = solvable(*objective.log_sums(log_scales), objective.held)
    free = free if stopped is None else free & ~stopped
    return residual(objective, log_scales.to("cpu", torch.float64).numpy(), free.cpu().numpy())


def residual(source: EntrySource, log_scales: Floats, free: Mask) -> float:
    """Returns the largest x_e - meet(e) over all entries that free variables move, natural logarithms, at least 0.

    x_e is the logarithm of entry e. meet(e) is the largest value such that each of the two nodes of e is reached from the other
    through entries that are no smaller; all that is fixed is one node. It is 0 where, and only where, the sorted entries are
    lexicographically least.

    Args:
        source: the entries.
        log_scales: (K,) where.
        free: (K,) the variables that may move.

    Returns:
        The residual, or an upper bound where entries far from balance, or entries of three or more variables that meet, are too
        many; inf where an entry lies on no cycle, or nothing is known.
    """
    decided = source.remembered()
    if decided is not None and decided.show_balance(free, log_scales):
        return 0.0
    known = first_entries(source, log_scales, free, _LARGEST)
    found = 0.0
    excess = np.zeros(0)
    for _ in range(_MOST_ROUNDS):
        structure = Structure(known.at(log_scales), len(free))
        while structure.general_variables.any():
            part = general_part(source, log_scales, free, structure.general_variables)
            found = max(found, _of_part(source, log_scales, part))
            free = free & ~part.variables
            known = moving(known, free, log_scales)
            structure = Structure(known.at(log_scales), len(free))
        arcs = structure.arcs
        levels = bottleneck_levels(len(structure.nodes), arcs.tails, arcs.heads, structure.values)
        slack = _DIGITS * (1.0 + float(np.abs(known.logs).max(initial=0.0)))
        above = above_levels(source, log_scales, free, Levelled(structure, levels), slack)
        excess = above.at(log_scales).logs - structure.levels_of(above, levels)
        if not len(lacking(above, known, slack)):
            break
        known = distinct(joined([known, above]))
    return max(found, float(excess.max(initial=0.0)))


def _of_part(source: EntrySource, log_scales: Floats, part: GeneralPart) -> float:
    """Returns the residual of variables that entries of three or more join; where they are many, a bound by large p."""
    if part.entries is not None and len(part.entries) <= _MOST_ENTRIES:
        logs = part.entries.at(log_scales).logs
        return float((logs - meets(part.exponents(part.entries), logs)).max())
    limit = limit_of_powers(source, log_scales, part.variables)
    return limit.residual_at(log_scales)

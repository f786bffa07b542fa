"""Max-balanced log-scales from few entries: those that lack are found by looking at all, and the rest needs no look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .connected import connected
from .contraction import contracted
from .entries import Floats, Mask, distinct, joined, lacking
from .levels import Levels
from .parts import general_part
from .source import Deciding, EntrySource, Levelled, above_levels, moving
from .structure import Structure

__all__ = ["MaxBalanced", "max_balanced"]

_LARGEST = 2
"""Entries in and out of each variable at the start: with 2 a chain of 64 layers takes 3 rounds, and with 3 as many, which take
longer."""

_MARGIN, _DROPPED = 0.03, 0.1
"""Natural logarithms below its level from which an entry joins after the first round, since the next may need it, and below
which one leaves then. Measured on chains of 64 x 64, 256 x 16 and 4 x 512 and a residual network: fewer rounds or arcs than with
others. After later rounds only those join that are above their level: they are few, and so are those which the next may need."""

_MOST_ROUNDS = 8
"""Rounds at most; chains, residual networks and U-Nets take 2 to 4."""

_DIGITS = 1e-12
"""Rounding errors of a potential, relative to the largest logarithm: 1e-13 on 256 layers."""


@dataclass(frozen=True)
class MaxBalanced:
    """The answer of `max_balanced`.

    Attributes:
        log_scales: (K,) natural logarithms.
        open: (K,) bool: variables that were left where they are, for too many entries of three or more variables join them.
    """

    log_scales: Floats
    open: Mask


def max_balanced(source: EntrySource, start: Floats, free: Mask) -> MaxBalanced:
    """Returns the max-balanced log-scales of the free variables; the others stay where they are.

    Args:
        source: the entries.
        start: (K,) log-scales to start from: near the answer fewer entries are needed.
        free: (K,) the variables that move.
    """
    log_scales, left, slack = start.copy(), np.zeros_like(free), 0.0
    known = moving(source.largest_entries(log_scales, _LARGEST), free, log_scales)
    for number in range(_MOST_ROUNDS):
        structure = Structure(known.at(log_scales), len(free))
        while structure.general_variables.any():
            part = general_part(source, log_scales, free, structure.general_variables)
            free = free & ~part.variables
            if part.entries is None:
                left = left | part.variables
            else:
                log_scales = part.solved(log_scales)
            known = moving(known, free, log_scales)
            structure = Structure(known.at(log_scales), len(free))
        levels, change = _contracted(structure, source)
        change = np.where(free, change, 0.0)
        log_scales = log_scales + change
        slack = _DIGITS * (1.0 + float(np.abs(known.logs).max(initial=0.0)))
        margin = -_MARGIN if number == 0 else slack
        levelled = Levelled(structure, levels)
        found = lacking(above_levels(source, log_scales, free, levelled, margin), known, slack)
        if not (found.at(log_scales).logs > structure.levels_of(found, levels) + slack).any():
            values = structure.values_after(change)
            source.remember(Deciding(known, free, log_scales, levelled, values, slack))
            break
        if number == 0:
            known = known.chosen(known.at(log_scales).logs > structure.levels_of(known, levels) - _DROPPED)
        known = distinct(joined([known, found]))
    else:
        source.remember(Deciding(known, free, log_scales))
    return MaxBalanced(log_scales, left)


def _contracted(structure: Structure, source: EntrySource) -> tuple[Levels, Floats]:
    """Returns the levels of a structure's nodes, and the (K,) change of the log-scales."""
    count, arcs = len(structure.nodes), structure.arcs
    graph = connected(count, (arcs.tails, arcs.heads, structure.values), structure.images)
    found = contracted(count, *graph, source.contraction)
    return found.levels, structure.log_scales(found.potential)

"""Where an objective has a minimum: the directions along which it falls for ever, as rows of exponents.

Sums of exponentials never rise along d where a_e . d <= 0 for all entries. A normalised term rises unless all its entries grow
alike, so it adds rows that say so. A user's own term is asked for its slope far along each variable and each group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..analysis.attained.exponent_rows import ExponentRows, exponent_rows
from ..analysis.attained.movable import CountedSides
from ..analysis.groups import Group
from ..weights.objective import CurrentObjective
from .function import Function
from .own import Own
from .parts import Exponentials, Normal

__all__ = ["counted_sides", "one_sided_groups", "rows_of", "rows_of_entries"]

Ids = NDArray[np.int64]


def counted_sides(function: Function) -> CountedSides:
    """Returns logs of N and P at the current weights, and which variables any entry carries; a user's term carries all."""
    zero = torch.zeros_like(function.labels, dtype=torch.float64)
    sums = [one for part in function.parts for one in _sums_in(part)]
    parts = [one.sides(zero) for one in sums]
    programs = [one.objective.program for one in sums]
    empty = torch.full_like(zero, -torch.inf)
    negative = torch.stack([empty, *(one.log_negative for one in parts)]).logsumexp(0)
    positive = torch.stack([empty, *(one.log_positive for one in parts)]).logsumexp(0)
    none = torch.zeros_like(zero, dtype=torch.bool)
    counted_negative = torch.stack([none, *(program.counted_negative for program in programs)]).any(0)
    counted_positive = torch.stack([none, *(program.counted_positive for program in programs)]).any(0)
    if any(isinstance(part, Own) for part in function.parts):
        negative, positive = negative.clamp(min=0.0), positive.clamp(min=0.0)
        counted_negative, counted_positive = ~none, ~none
    # A normalised term rises both ways along all that it carries.
    for part in function.parts:
        if isinstance(part, Normal):
            carried = torch.stack(
                [one.objective.program.counted_negative | one.objective.program.counted_positive for one in part.sums]
            ).any(0)
            live = carried & (negative.isfinite() | positive.isfinite())
            counted_negative, counted_positive = counted_negative | carried, counted_positive | carried
            negative, positive = (torch.where(live & ~side.isfinite(), 0.0, side) for side in (negative, positive))
    return CountedSides(
        counted_negative.cpu().numpy(), counted_positive.cpu().numpy(), negative.cpu().numpy(), positive.cpu().numpy()
    )


def _sums_in(part: object) -> Sequence[Exponentials]:
    """Returns the sums of exponentials in a part."""
    if isinstance(part, Normal):
        return part.sums
    return [part] if isinstance(part, Exponentials) else []


def rows_of(function: Function, groups: Sequence[Sequence[int]]) -> ExponentRows:
    """Returns rows r with r . d <= 0 for all d along which the objective never rises, and < 0 for one of them if it falls.

    Args:
        function: the objective.
        groups: the places of each group, of which a user's term is asked together too.
    """
    count = function.labels.numel()
    rows = ExponentRows(count, count)
    plain = function.sums()
    found = [rows_of_entries(part.objective) for part in plain]
    rows = rows.extended(found) if found else rows
    for part in function.parts:
        if isinstance(part, Normal) and plain:
            _add_normal(rows, part)
        elif isinstance(part, Own):
            _add_own(rows, part, groups, function.labels)
    return rows


def rows_of_entries(own: CurrentObjective) -> ExponentRows:
    """Returns the exponents of the entries that are not zero, on whatever process they are."""
    parts = own.sums.gathered(lambda: exponent_rows(own.program.to(torch.device("cpu")), own.matrices))
    return parts[0].extended(parts[1:])


def _equal(rows: ExponentRows, terms: Sequence[tuple[int, Ids]], size: int) -> None:
    """Adds that some forms stay 0."""
    rows.add(terms, size)
    rows.add([(-coefficient, ids) for coefficient, ids in terms], size)


def _add_normal(rows: ExponentRows, part: Normal) -> None:
    """Adds that all entries of a normalised term grow alike: each of their terms is one number along its axes."""
    level = rows.hubs(1)
    if any(one.log_constant > -np.inf for one in part.sums):
        _equal(rows, [(1, level)], 1)
    for one in part.sums:
        program = one.objective.whole_program.to(torch.device("cpu"))
        for block in program.blocks:
            total: list[tuple[int, Ids]] = [(-1, level)]
            for coefficient, given in block.terms:
                ids = given.numpy().reshape(-1)
                hub = rows.hubs(1)
                distinct = np.unique(np.where(ids == program.num_scales, -1, ids))
                _equal(rows, [(1, distinct), (-1, hub)], distinct.size)
                total.append((coefficient, hub))
            _equal(rows, total, 1)


def _add_own(rows: ExponentRows, part: Own, groups: Sequence[Sequence[int]], labels: Tensor) -> None:
    """Adds the ways along which a user's term rises or falls: variable by variable, or of a group against one another only."""
    recession = part.recession()
    if recession is None:
        return

    def slopes(places: Sequence[int]) -> tuple[float, float]:
        """Returns the slopes far along some variables together, up and down."""
        direction = torch.zeros_like(labels, dtype=torch.float64)
        direction[list(places)] = 1.0
        return recession(direction), recession(-direction)

    known = part.recessions(torch.zeros_like(labels, dtype=torch.float64)).T.tolist()

    def alone(place: int) -> tuple[float, float]:
        """Returns the slopes far along one variable, up and down, which a term may tell of all at once."""
        up, down = known[place]
        return slopes([place]) if math.isnan(up) or math.isnan(down) else (up, down)

    def sides(up: float, down: float) -> list[int]:
        """Returns the signs of the exponents that entries would have."""
        return [sign for sign, there in ((1, up > 0 or down < 0), (-1, down > 0 or up < 0)) if there]

    for places in groups:
        together = sides(*slopes(places)) if len(places) > 1 else None
        tied = []
        for place in places:
            signs = sides(*alone(place))
            ids = np.array([place], dtype=np.int64)
            if together == [] and len(signs) == 2:
                tied.append(place)
                continue
            for sign in signs:
                rows.add([(sign, ids)], 1)
        # Of a variable along which the term falls for ever, the others say nothing.
        if len(tied) > 1:
            _equal(rows, [(1, np.array(tied, dtype=np.int64)), (-1, rows.hubs(1))], len(tied))


def one_sided_groups(groups: Sequence[Group], sides: CountedSides, free: NDArray[np.bool_]) -> list[Ids]:
    """Returns by group the variables with entries, where all these lie on one side and there are several.

    Args:
        groups: of the plan.
        sides: the objective at the current weights.
        free: (K,) variables that may move.
    """
    found = []
    for group in groups:
        own = np.arange(group.variables.start, group.variables.stop, dtype=np.int64)
        own = own[free[own]]
        below, above = np.isfinite(sides.log_negative[own]), np.isfinite(sides.log_positive[own])
        alive = own[below | above]
        if alive.size > 1 and not (below & above).any() and (below.any() != above.any()):
            found.append(alive)
    return found

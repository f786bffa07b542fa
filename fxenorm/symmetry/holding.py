"""Parameters, or entries of them, that are held by an option, by shared memory, or because no trace reads them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from ..errors import warn_user
from ..field import ScaleField, compress, solve
from ..field.structure import select_positions, take_slice
from ..trace.traced_model import TracedModel
from .express import Expander
from .unread import unread_positions
from .walk import Walk
from .walk.events import Origin

__all__ = ["hold_parameters", "hold_unread"]


def hold_parameters(
    walk: Walk, traced: Sequence[TracedModel], shapes: dict[str, tuple[int, ...]], aliases: dict[str, str], exclude: Sequence[str]
) -> set[str]:
    """Holds excluded parameters, and those that share memory without being one; returns their names."""
    excluded = walk.origin(Origin("exclude", "", "", "", "excluded"))
    shared = walk.origin(Origin("shared memory", "", "", "", "parameters that overlap in memory without being the same tensor"))
    overlapping = {name for graph in traced for names in graph.shared_storage for name in names}
    names_of: dict[str, list[str]] = {name: [name] for name in shapes}
    for alias, name in aliases.items():
        names_of.get(name, []).append(alias)
    unmatched, held = set(exclude), set()
    for name, names in names_of.items():
        hits = {pattern for pattern in exclude if any(_matches(other, pattern) for other in names)}
        unmatched -= hits
        if hits or name in overlapping:
            walk.parameters.hold(name, excluded if hits else shared)
            held.add(name)
    if unmatched:
        text = ", ".join(repr(pattern) for pattern in sorted(unmatched))
        warn_user(f"exclude: no parameter or module is named {text}")
    return held


def _matches(name: str, pattern: str) -> bool:
    """Whether the pattern names the parameter or one of the modules that it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:k]), pattern) for k in range(1, len(parts) + 1))


def hold_unread(walk: Walk, traced: Sequence[TracedModel]) -> None:
    """Ties entries that these inputs did not read, but longer ones would, to the others if these all agree; else holds them."""
    missing = {name: axes for name, axes in unread_positions(traced, walk.facts_of).items() if name in walk.parameters.fields}
    if not missing:
        return
    origin = walk.origin(Origin("unread entries", "", "", "", "entries that the example inputs do not read"))
    solved = Expander(solve(walk.equations).matrix)
    for name, axes in missing.items():
        field = walk.parameters.fields[name]
        cut = [axis for axis, positions in enumerate(axes) if len(positions)]
        for axis in cut:
            part = select_positions(field, axis, axes[axis])
            read = select_positions(field, axis, np.setdiff1d(np.arange(field.shape[axis]), axes[axis]))
            final = ScaleField(read.shape, tuple((c, compress(ids, [axis])) for c, ids in solved.terms(read.terms)))
            if len(cut) == 1 and read.shape[axis] and not final.varies_along(axis):
                walk.equations.require_equal(part, take_slice(read, axis, slice(0, 1)), origin)
            else:
                walk.equations.require_zero(part, origin)

"""Single entries of the counted tensors, with their exponents, as the solvers of p = inf and of large p take them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...kernels.backend import FoundEntries, ObjectiveSums
from ...solve.max_balance.entries import Entries, Floats, Mask, joined

__all__ = ["entries_where", "largest_entries"]

_AT_ONCE = 1 << 16
"""Entries that are chosen from together: some 5 MiB with all that is worked out of them."""


def largest_entries(sums: ObjectiveSums, log_scales: Floats, count: int) -> Entries:
    """Returns so many of the largest entries of each channel of each tensor after a rescaling.

    Args:
        sums: of the counted tensors.
        log_scales: (K,) natural logarithms.
        count: how many of each channel.
    """
    return joined([_entries(found) for found in sums.largest_entries(torch.from_numpy(log_scales), count)])


def entries_where(sums: ObjectiveSums, log_scales: Floats, least: Floats, choose: Callable[[Entries], Mask]) -> Entries:
    """Returns those of all entries above a value after a rescaling that are chosen; looks at a part at a time.

    Args:
        sums, log_scales: as `largest_entries` takes them.
        least: (K,) values by variable, natural logarithms: an entry is to be above the least of those of its variables.
        choose: returns (n,) which of some entries to keep.
    """
    found: list[Entries] = []
    waiting: list[Entries] = []

    def look() -> None:
        """Chooses of those that wait."""
        some = joined(waiting)
        found.append(some.chosen(choose(some)))
        waiting.clear()

    for part in sums.entries_above(torch.from_numpy(log_scales), torch.from_numpy(least)):
        waiting.append(_entries(part))
        if sum(map(len, waiting)) > _AT_ONCE:
            look()
    look()
    return joined(found)


def _entries(found: FoundEntries) -> Entries:
    """Returns the entries of one part."""
    ids, coefficients, logs = found
    return Entries.of_terms(ids, coefficients, logs) if ids.shape[1] else Entries.none()

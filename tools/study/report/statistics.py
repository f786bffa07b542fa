"""Means, deviations, and paired differences with their 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean of differences and half the width of its interval."""

    mean: float
    half: float

    @property
    def leaves_out_zero(self) -> bool:
        """Whether the interval has one sign."""
        return abs(self.mean) > self.half

    def text(self, digits: int) -> str:
        """The mean with its sign, ±, and half the width."""
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"


def paired(values: Sequence[float | None], others: Sequence[float | None]) -> Difference | None:
    """The mean of values minus others, pair by pair, with Student's 95 % interval.

    Args:
        values, others: by seed, in the same order.

    Returns:
        The difference; None where a value is missing or there are fewer than two pairs.
    """
    if len(values) < 2 or len(values) != len(others) or None in values or None in others:
        return None
    from scipy.stats import t

    differences = [a - b for a, b in zip(values, others, strict=True)]  # type: ignore[operator]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(statistics.fmean(differences), float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error)


def spread(values: Sequence[float], digits: int) -> str:
    """The mean ± the sample standard deviation; "-" where there is none."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"

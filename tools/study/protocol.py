"""The protocol: which runs a cell still needs, given those that are finished.

`notebooks/study/README.md` states it in words. Nothing is remembered but the records, so a run that was killed goes on
where it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .configuration import Configuration
from .methods.method import Method
from .records import Records, Result

SERIES = tuple(float(f"{digit}e{power}") for power in range(-6, 2) for digit in (1, 2, 5))
"""The rates that there are; neighbours differ by a factor of 2 or 2.5."""
GRID = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
"""The rates that every arm begins with."""
EXTENSIONS = 3
"""Rates that may be added at each end."""
TUNING_SEEDS = (1000, 1001, 1002, 1003)
"""Seeds by which rates are chosen; results are reported of others."""
REPORTING_SEEDS = 10

Stack = list[Configuration]


@dataclass(frozen=True)
class Cell:
    """One comparison of methods: all of them on the same network, batch, start and number of steps.

    Attributes:
        base: everything but method, rate, seed and purpose.
        methods: the arms; the first is the one to which the others are compared.
        tuning: seeds to choose rates by.
        reporting: seeds of the results.
        grid: rates to begin with.
        rate: the rate of all arms, where none is to be chosen.
        label: what this cell is for, where it is shown apart from others of its kind.
    """

    base: Configuration
    methods: tuple[Method, ...]
    tuning: tuple[int, ...] = TUNING_SEEDS
    reporting: tuple[int, ...] = tuple(range(REPORTING_SEEDS))
    grid: tuple[float, ...] = GRID
    rate: float | None = None
    label: str = ""

    @property
    def title(self) -> str:
        """What tells this cell from others."""
        base = self.base
        parts = [f"{base.experiment}, {base.dataset}", f"start {base.start}", f"batch {base.batch}"]
        parts += [f"depth {base.depth}, width {base.width:g}"] if base.experiment == "mlp" else []
        parts += [f"{base.steps} steps" if base.steps is not None else f"{base.epochs} epochs"]
        parts += [part for part in (base.variant, self.label) if part]
        if base.decay_on != "all" or base.decoupled:
            parts.append(f"decay on {base.decay_on}{', decoupled' if base.decoupled else ''}")
        return ", ".join(parts)

    def tuned(self, method: Method, rates: Sequence[float]) -> Stack:
        """The tuning runs of an arm at some rates."""
        return [self.base.but(method=method, rate=rate, seed=seed, purpose="tune") for rate in rates for seed in self.tuning]

    def reported(self, method: Method, rate: float) -> Stack:
        """The reporting runs of an arm."""
        purpose = "report" if self.rate is None else "released"
        return [self.base.but(method=method, rate=rate, seed=seed, purpose=purpose) for seed in self.reporting]


@dataclass(frozen=True)
class Tuning:
    """What the tuning runs of an arm say.

    Attributes:
        rates: in ascending order.
        means, deviations: of the validation score over the tuning seeds, by rate.
        diverged: number of runs that diverged, by rate.
    """

    rates: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    diverged: tuple[int, ...]

    @property
    def best(self) -> float:
        """The rate of the largest mean minus deviation, so that no rate at a cliff wins."""
        values = [mean - deviation for mean, deviation in zip(self.means, self.deviations, strict=True)]
        return self.rates[values.index(max(values))]

    def usable(self, within: float) -> tuple[float, float]:
        """The least and the largest rate around the best mean that stay within some points of it, without a gap."""
        top = max(self.means)
        low = high = self.means.index(top)
        while low > 0 and self.means[low - 1] >= top - within:
            low -= 1
        while high + 1 < len(self.means) and self.means[high + 1] >= top - within:
            high += 1
        return self.rates[low], self.rates[high]


def tuning_of(cell: Cell, method: Method, rates: Sequence[float], records: Records) -> Tuning | None:
    """What is known of an arm at some rates; None where runs are missing."""
    rows = []
    for rate in sorted(rates):
        found: list[Result] = [result for one in cell.tuned(method, [rate]) if (result := records.get(one)) is not None]
        if len(found) < len(cell.tuning):
            return None
        scores = [result["score"] for result in found]
        deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
        rows.append((rate, statistics.fmean(scores), deviation, sum(result["diverged"] for result in found)))
    columns = list(zip(*rows, strict=True))
    return Tuning(columns[0], columns[1], columns[2], columns[3])


def stages(cell: Cell) -> list[list[float]]:
    """The grid, and all rates that extensions may add at each end: the first element, then below, then above."""
    below = [rate for rate in SERIES if rate < min(cell.grid)][::-1][:EXTENSIONS]
    above = [rate for rate in SERIES if rate > max(cell.grid)][:EXTENSIONS]
    return [list(cell.grid), below, above]


def rates_of(cell: Cell, records: Records) -> tuple[list[float], list[Stack]]:
    """The rates that the arms of a cell share, and the stacks that are missing to know whether these are all.

    A best value of any arm at an end of the rates adds the next rate there for all arms.
    """
    grid, below, above = stages(cell)
    rates, added = list(grid), [list(grid)]
    while True:
        missing = [stack for method in cell.methods for new in added if not records.has(stack := cell.tuned(method, new))]
        if missing:
            return sorted(rates), missing
        best = set()
        for method in cell.methods:
            tuning = tuning_of(cell, method, rates, records)
            best |= {tuning.best} if tuning is not None else set()
        if min(rates) in best and below:
            new = below.pop(0)
        elif max(rates) in best and above:
            new = above.pop(0)
        else:
            return sorted(rates), []
        rates.append(new)
        added.append([new])


def missing(cell: Cell, records: Records) -> list[Stack]:
    """The stacks of runs that a cell needs next; empty where it is finished."""
    if cell.rate is not None:
        return [stack for method in cell.methods if not records.has(stack := cell.reported(method, cell.rate))]
    rates, wanted = rates_of(cell, records)
    if wanted:
        return wanted
    found = []
    for method in cell.methods:
        tuning = tuning_of(cell, method, rates, records)
        if tuning is not None and not records.has(stack := cell.reported(method, tuning.best)):
            found.append(stack)
    return found

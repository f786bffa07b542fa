"""From the records of a cell to its rows: what tables, conclusions and plots are made of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..methods import BalancedOnce, Method
from ..protocol import Cell, Tuning, missing, rates_of, tuning_of
from ..records import Records, Result
from .statistics import Difference, paired


@dataclass(frozen=True)
class Row:
    """An arm of a cell.

    Attributes:
        cell: the cell.
        method: the arm.
        rate: at which it was scored.
        tuning: what the rate was chosen by; None where it was given.
        results: by reporting seed.
        score: paired difference to the first arm of the cell; None for that arm.
        loss: the same of the training loss; None also where a run diverged.
    """

    cell: Cell
    method: Method
    rate: float
    tuning: Tuning | None
    results: tuple[Result, ...]
    score: Difference | None
    loss: Difference | None

    @property
    def mean(self) -> float:
        """The mean score."""
        return statistics.fmean(result["score"] for result in self.results)

    @property
    def diverged(self) -> int:
        """The number of runs that diverged."""
        return sum(result["diverged"] for result in self.results)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the least or the largest that was tried."""
        return self.tuning is not None and self.rate in (self.tuning.rates[0], self.tuning.rates[-1])

    @property
    def start(self) -> str:
        """The start of this arm."""
        return self.method.start or self.cell.base.start

    @property
    def is_the_balanced_network(self) -> bool:
        """Whether this arm trains the network that is balanced once, which is the same from He, layers and channels."""
        method = self.method
        plain = isinstance(method, BalancedOnce) and method.c == 1.0 and not method.options and method.norm == "none"
        return plain and self.start in ("he", "layers", "channels")


def rows_of(cell: Cell, records: Records) -> list[Row]:
    """The rows of a finished cell; empty where runs are missing."""
    if missing(cell, records):
        return []
    rates, _ = rates_of(cell, records) if cell.rate is None else ([cell.rate], [])
    rows: list[Row] = []
    for method in cell.methods:
        tuning = tuning_of(cell, method, rates, records) if cell.rate is None else None
        rate = tuning.best if tuning is not None else rates[0]
        results = tuple(result for one in cell.reported(method, rate) if (result := records.get(one)) is not None)
        first = rows[0].results if rows else ()
        score, loss = (
            paired([result[name] for result in results], [result[name] for result in first]) for name in ("score", "train_loss")
        )
        rows.append(Row(cell, method, rate, tuning, results, score, loss))
    return rows


def sections(cells: Sequence[Cell], records: Records) -> list[list[Row]]:
    """The rows of finished cells; cells that differ in the start alone stand together."""
    found: dict[object, list[Row]] = {}
    for cell in cells:
        key = (cell.base.but(start="", method=cell.methods[0]), cell.rate, cell.reporting, cell.label)
        found.setdefault(key, []).extend(rows_of(cell, records))
    return [rows for rows in found.values() if rows]


def noise(rows: Sequence[Row]) -> float | None:
    """The spread of the mean scores of the arms of a section that train one network in one way; None where there is one such.

    Of several optimizers, the larger spread.
    """
    spreads = []
    for optimizer in sorted({row.method.optimizer for row in rows}):
        means = [row.mean for row in rows if row.is_the_balanced_network and row.method.optimizer == optimizer]
        if len(means) > 1:
            spreads.append(max(means) - min(means))
    return max(spreads, default=None)

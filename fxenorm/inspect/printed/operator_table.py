"""The operators of a model, or all that have a rule, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from ...text.table import Column
from ..report import Json
from .pair_table import Table

__all__ = ["operator_table"]


def operator_table(operators: Sequence[Json]) -> Table:
    """Returns operators in rows: name, number of calls in the model where one was given, family and law."""
    counted = any(entry["calls"] is not None for entry in operators)
    columns = [
        Column("operator", "", "cyan"),
        *([Column("calls", "right", "green")] if counted else []),
        Column("family"),
        Column("law", "text"),
    ]
    rows = [
        [entry["operator"], *([f"{entry['calls']:,}"] if counted else []), entry["family"], entry["law"]] for entry in operators
    ]
    return Table(columns, rows)

"""The journal of a checkpoint that is being balanced: what is finished, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

__all__ = ["ComponentReport", "ProgressJournal"]


@dataclass(frozen=True)
class ComponentReport:
    """A component that is written.

    Attributes:
        index: its place among the components.
        log_scales: of its variables, natural logarithms.
        converged: whether its imbalance fell to the tolerance.
        norm_before, norm_after: of its counted tensors.
        imbalance_before, imbalance_after: the largest of its variables that are not held.
        held: how many of its variables stay at 0.
        rounded: how many entries powers of two have rounded.
    """

    index: int
    log_scales: tuple[float, ...]
    converged: bool
    norm_before: float
    norm_after: float
    imbalance_before: float
    imbalance_after: float
    held: int
    rounded: int


class ProgressJournal:
    """Lines of JSON beside the unfinished checkpoint; a line that a kill has cut off does not count.

    Args:
        path: of the journal.
        key: says what is being done; a journal of something else is not gone on with.

    Raises:
        CheckpointError: the journal belongs to another source, plan or set of options.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.prepared = False
        self.reports: dict[int, ComponentReport] = {}
        lines = list(_lines(path))
        if lines and lines[0].get("key") != key:
            raise CheckpointError(
                f"{path} is left of a run with another source, model or other options: finish that run, or remove {path} and "
                f"what lies beside it"
            )
        for line in lines[1:]:
            self._take(line)
        if not lines:
            path.unlink(missing_ok=True)
            self._append({"key": key})

    def _take(self, line: Mapping[str, Any]) -> None:
        """Takes up one line."""
        if "prepared" in line:
            self.prepared = True
        else:
            report = ComponentReport(**{**line, "log_scales": tuple(line["log_scales"])})
            self.reports[report.index] = report

    def say_prepared(self) -> None:
        """Notes that the files are there, with all that does not move."""
        self._append({"prepared": True})
        self.prepared = True

    def add(self, report: ComponentReport) -> None:
        """Notes a component that is written."""
        self._append(vars(report))
        self.reports[report.index] = report

    def _append(self, line: Mapping[str, Any]) -> None:
        """Writes one line, and waits until the disk has it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a journal; cuts off one that is not."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole, _, rest = text.rpartition(b"\n")
    if rest:
        with path.open("r+b") as file:
            file.truncate(len(text) - len(rest))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove it, and what lies beside it, and begin again") from error

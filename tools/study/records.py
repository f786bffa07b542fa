"""`Records`: a file of JSON lines, one a run, by the key of its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .configuration import Configuration, StudyError

Result = dict[str, Any]


class Records:
    """The finished runs.

    Args:
        path: of the file; None: nothing is kept. A last line that a kill cut short is passed over.

    Raises:
        StudyError: another line is damaged.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._results: dict[str, Result] = {}
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        lines = text.split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                record = json.loads(line)
                self._results[record["key"]] = record["result"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise StudyError(f"{path}, line {number}, is no record of a run: {line[:80]!r}") from error
        if lines[-1] and path is not None:
            path.write_text(text[: len(text) - len(lines[-1])], encoding="utf-8")

    def get(self, of: Configuration) -> Result | None:
        """The result of a run; None where it has not been finished."""
        return self._results.get(of.key)

    def has(self, of: Sequence[Configuration]) -> bool:
        """Whether all of some runs are finished."""
        return all(one.key in self._results for one in of)

    def add(self, of: Sequence[Configuration], results: Sequence[Result]) -> None:
        """Keeps the results of some runs, by one write."""
        lines = []
        for one, result in zip(of, results, strict=True):
            self._results[one.key] = result
            lines.append(json.dumps({"key": one.key, "configuration": one.to_dict(), "result": result}) + "\n")
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
                file.flush()

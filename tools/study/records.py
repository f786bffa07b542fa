"""`Records`: a file of JSON lines, one a run, by the key of its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .configuration import Configuration, StudyError

Result = dict[str, Any]
CURVES = ("curve_steps", "curve_loss", "curve_norm", "curve_imbalance", "norms_before_batchnorm")


def kept(of: Configuration, result: Result) -> Result:
    """What is written of a run: of one that only helps to choose a rate its score, of others all, with curves of four digits."""
    if of.purpose == "tune":
        return {name: result[name] for name in ("diverged", "score")}
    curves = {name: [_four_digits(value) for value in result[name]] for name in CURVES if result.get(name)}
    return {name: value for name, value in result.items() if name not in CURVES} | curves


def _four_digits(value: float | None) -> float | None:
    """A number, shorter."""
    return None if value is None else float(f"{value:.4g}")


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
            self._results[one.key] = kept(one, result)
            record = {"key": one.key, "configuration": one.to_dict(), "result": self._results[one.key]}
            lines.append(json.dumps(record, separators=(",", ":")) + "\n")
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
                file.flush()

"""The lines and branches that no recorded test reaches, by folder."""

from __future__ import annotations

import json
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from coverage import Coverage, CoverageData
from reach import arcs_of
from session import folder_of


def _ranges(lines: list[int]) -> list[str]:
    found: list[list[int]] = []
    for line in lines:
        if found and line == found[-1][1] + 1:
            found[-1][1] = line
        else:
            found.append([line, line])
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]


def unreached(root: Path, records: Path, patterns: list[str]) -> str:
    """The table by folder, then each file's unreached lines and branches; only files that match a pattern, if there are some."""
    with tempfile.TemporaryDirectory() as folder:
        data = CoverageData(str(Path(folder, "all.coverage")))
        for path in sorted(records.glob("*.json.gz")):
            data.add_arcs(arcs_of(root, records, path))
        data.write()
        measured = Coverage(data_file=str(Path(folder, "all.coverage")), config_file=str(root / "pyproject.toml"))
        measured.load()
        report = Path(folder, "report.json")
        measured.json_report(outfile=str(report), include=[f"fxenorm/{pattern}" for pattern in patterns] or ["fxenorm/*"])
        files: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["files"]
    table = ["| folder | statements | unreached | branches | unreached | reached |", "|---|---:|---:|---:|---:|---:|"]
    counted = ("num_statements", "missing_lines", "num_branches", "missing_branches")
    for folder, names in groupby(sorted(files, key=folder_of), folder_of):
        summaries = [files[name]["summary"] for name in names]
        statements, missed, branches, missed_branches = (sum(one[key] for one in summaries) for key in counted)
        part = 100.0 * (1 - (missed + missed_branches) / max(1, statements + branches))
        table.append(f"| {folder} | {statements} | {missed} | {branches} | {missed_branches} | {part:.1f} % |")
    details = []
    for name, file in sorted(files.items()):
        reached = [(line, to) for line, to in file["missing_branches"] if line not in file["missing_lines"]]
        found = [*_ranges(file["missing_lines"]), *(f"{line}->{'exit' if to < 0 else to}" for line, to in reached)]
        if found:
            details.append(f"{name}: {', '.join(found)}")
    return "\n".join([*table, "", *details])

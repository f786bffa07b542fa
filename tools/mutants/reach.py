"""Which lines each test reaches, and how long it takes: recorded once a test file, with the branch coverage."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from forked import in_a_fork

DOCTESTS = "doctests"  # the name of the record of all doctests
PYTEST = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def digest(path: Path) -> str:
    """The content of a file as a short text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@cache
def same_lines(one: str, other: str) -> dict[int, int]:
    """By line of a source, the line of another version of it that says the same at the same place."""
    matcher = difflib.SequenceMatcher(None, one.splitlines(), other.splitlines(), autojunk=False)
    return {a + k + 1: b + k + 1 for a, b, size in matcher.get_matching_blocks() for k in range(size)}


def place_of(name: str) -> str:
    """The path of a test file that the table names; a path stays one."""
    return name if "/" in name else "fxenorm" if name == DOCTESTS else f"tests/{name}.py"


def digest_of_tests(copy: Path, name: str) -> str:
    """The content of a test file as a short text; doctests stand beside the code, and change with it."""
    path = copy / place_of(name)
    return digest(path) if path.is_file() else ""


@dataclass(frozen=True)
class Reach:
    """What one test file reaches: seconds and lines by test, and the content of the sources when that was seen."""

    seconds: dict[str, float]
    failed: list[str]
    lines: dict[str, dict[str, list[int]]]  # source file -> test -> lines
    sources: dict[str, str]  # source file -> digest
    test_file: str  # digest

    @classmethod
    def read(cls, path: Path) -> Reach:
        """Read what `record` has written."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return cls(**json.load(file))


class _Contexts:
    """A pytest plugin: each test is a context of coverage.py, with its seconds."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = round(self.seconds.get(report.nodeid, 0.0) + report.duration, 3)
        if report.failed:
            self.failed.append(report.nodeid)


def _measure(copy: Path, name: str, target: Path) -> int:
    import coverage

    measured = coverage.Coverage(data_file=None, branch=True, source=["fxenorm"], config_file=False)
    contexts = _Contexts(measured)
    measured.start()
    status = pytest.main([*PYTEST, "--tb=short", place_of(name)], plugins=[contexts])
    measured.stop()
    data = measured.get_data()
    lines: dict[str, dict[str, list[int]]] = {}
    arcs: dict[str, list[tuple[int, int]]] = {}
    for file in data.measured_files():
        source = Path(file).relative_to(copy).as_posix()
        data.set_query_contexts(None)
        arcs[source] = list(data.arcs(file) or [])
        by_test: dict[str, list[int]] = {}
        for line, tests in data.contexts_by_lineno(file).items():
            for test in filter(None, tests):
                by_test.setdefault(test, []).append(line)
        if by_test:
            lines[source] = by_test
    merged = coverage.CoverageData(str(target.with_suffix(".coverage")))
    merged.erase()
    merged.add_arcs(arcs)
    merged.write()
    kept = target.parent / "sources"
    kept.mkdir(exist_ok=True)
    for source in lines:
        (kept / digest(copy / source)).write_bytes((copy / source).read_bytes())
    found = {
        "seconds": contexts.seconds,
        "failed": contexts.failed,
        "lines": lines,
        "sources": {source: digest(copy / source) for source in lines},
        "test_file": digest_of_tests(copy, name),
    }
    with gzip.open(target, "wt", encoding="utf-8", compresslevel=3) as file:
        json.dump(found, file)
    return status


def record(copy: Path, name: str, folder: Path, limit: float = 7200.0) -> Reach | None:
    """Run the test file `name` once, unmutated, and record what each of its tests reaches; None if no record came out."""
    target = folder / f"{name}.json.gz"
    target.unlink(missing_ok=True)
    in_a_fork(lambda: _measure(copy, name, target), copy, folder / f"{name}.log", limit)
    return Reach.read(target) if target.exists() else None

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
    if "/" in name or name == DOCTESTS:
        return name if "/" in name else "fxenorm"
    root = Path(__file__).parents[2]
    return next((path.relative_to(root).as_posix() for path in (root / "tests").rglob(f"{name}.py")), f"tests/{name}.py")


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

    def __init__(self, coverage: Any, known: frozenset[str]) -> None:
        self.coverage = coverage
        self.known = known
        self.present: set[str] = set()
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.present.update(item.nodeid for item in items)
        items[:] = [item for item in items if item.nodeid not in self.known]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = round(self.seconds.get(report.nodeid, 0.0) + report.duration, 3)
        if report.failed:
            self.failed.append(report.nodeid)


def arcs_of(root: Path, records: Path, path: Path) -> dict[str, list[tuple[int, int]]]:
    """What one record reaches, in the lines of the sources as they are now; of a changed source the lines that stayed."""
    from coverage import CoverageData

    seen = CoverageData(str(path.with_suffix(".coverage")))
    seen.read()
    then = Reach.read(path).sources
    found: dict[str, list[tuple[int, int]]] = {}
    for source in seen.measured_files():
        arcs, old = seen.arcs(source) or [], records / "sources" / then.get(source, "none")
        if not (root / source).exists():
            continue
        if old.is_file() and digest(root / source) != then[source]:
            now = same_lines(old.read_text(encoding="utf-8"), (root / source).read_text(encoding="utf-8"))
            moved = {line: now[abs(line)] * (1 if line > 0 else -1) for arc in arcs for line in arc if abs(line) in now}
            arcs = [(moved[start], moved[to]) for start, to in arcs if start in moved and to in moved]
        found[source] = arcs
    return found


def _moved(known: Reach, kept: Path, copy: Path, tests: set[str]) -> dict[str, dict[str, list[int]]]:
    """What some tests reached, in the lines of the sources as they are now."""
    found: dict[str, dict[str, list[int]]] = {}
    for source, by_test in known.lines.items():
        if not (copy / source).is_file():
            continue
        old, new = (kept / known.sources[source]).read_text(encoding="utf-8"), (copy / source).read_text(encoding="utf-8")
        now = {line: line for line in range(1, new.count("\n") + 2)} if old == new else same_lines(old, new)
        moved = {test: [now[line] for line in lines if line in now] for test, lines in by_test.items() if test in tests}
        if moved:
            found[source] = moved
    return found


def _measure(copy: Path, name: str, target: Path, known: Reach | None, known_arcs: dict[str, list[tuple[int, int]]]) -> int:
    import coverage

    measured = coverage.Coverage(data_file=None, branch=True, source=["fxenorm"], config_file=False)
    contexts = _Contexts(measured, frozenset(known.seconds if known else ()))
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
    seconds, failed = contexts.seconds, contexts.failed
    if known is not None:
        kept_tests = contexts.present & set(known.seconds)
        for source, by_test in _moved(known, target.parent / "sources", copy, kept_tests).items():
            lines[source] = by_test | lines.get(source, {})
        seconds = {test: known.seconds[test] for test in kept_tests} | seconds
        failed = [test for test in known.failed if test in kept_tests] + failed
        for source, before in known_arcs.items():
            arcs[source] = list({*before, *arcs.get(source, [])})
    merged = coverage.CoverageData(str(target.with_suffix(".coverage")))
    merged.erase()
    merged.add_arcs(arcs)
    merged.write()
    kept = target.parent / "sources"
    kept.mkdir(exist_ok=True)
    for source in lines:
        (kept / digest(copy / source)).write_bytes((copy / source).read_bytes())
    found = {
        "seconds": seconds,
        "failed": failed,
        "lines": lines,
        "sources": {source: digest(copy / source) for source in lines},
        "test_file": digest_of_tests(copy, name),
    }
    with gzip.open(target, "wt", encoding="utf-8", compresslevel=3) as file:
        json.dump(found, file)
    return status


def record(copy: Path, name: str, folder: Path, only_new: bool = False, limit: float = 7200.0) -> Reach | None:
    """Run the test file `name` once, unmutated, and record what each of its tests reaches; None if no record came out.

    `only_new`: run the tests alone that have no record, and keep the record of the others.
    """
    target = folder / f"{name}.json.gz"
    known = Reach.read(target) if only_new and target.exists() else None
    known_arcs = arcs_of(copy, folder, target) if known is not None else {}
    target.unlink(missing_ok=True)
    in_a_fork(lambda: _measure(copy, name, target, known, known_arcs), copy, folder / f"{name}.log", limit)
    return Reach.read(target) if target.exists() else None

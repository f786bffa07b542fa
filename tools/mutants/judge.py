"""Judge one mutant: run the tests that can reach it until one notices."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from forked import in_a_fork
from mutants import statement_lines
from reach import PYTEST, Reach, digest_of_tests, place_of, same_lines
from session import Drawn
from table import CALL_NATIVE, IN_OTHER_PROCESSES, TESTS, WIDER

_NO_TEST_RAN = 5  # pytest's exit status
_BUILD_LIMIT = 300.0  # seconds
_FIRST = 3  # so many files of a row run alone at first: most mutants need no others, and to collect tests takes time
_ROW, _WIDER = "own tests", "wider set"


@dataclass(frozen=True)
class Verdict:
    """Which tests noticed a mutant ("" if none), whether by the time limit, how many could reach it, and what was said."""

    noticed_by: str
    by_limit: bool
    reached_by: int
    said: str


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of pytest: the files, the seconds of each known test, those of them that run, and the limit."""

    files: list[str]
    seconds: dict[str, float]
    chosen: set[str]
    limit: float

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """As a plugin of pytest: keep the chosen tests, the fast ones first, and every test that is not known."""
        items[:] = [item for item in items if item.nodeid in self.chosen or item.nodeid not in self.seconds]
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.5 if item.nodeid.startswith("tests/") else 0.0))

    def start(self) -> int:
        """Run pytest until the first failure."""
        for file in self.files:
            if file.startswith("fxenorm/"):
                # As its package does; pytest alone would run a file that registers rules twice.
                with contextlib.suppress(ImportError):
                    importlib.import_module(file.removesuffix(".py").replace("/", "."))
        return int(pytest.main([*PYTEST, "-x", "--tb=line", *map(place_of, self.files)], plugins=[self]))


def _build() -> int:
    """Compile the native kernels into the cache; not 0 if they cannot be had."""
    build = importlib.import_module("fxenorm.kernels.cpu.build")
    return 0 if build.library() is not None else 1


def row_of(path: str) -> list[str]:
    """The test files of the first row of the table that matches a source."""
    inside = path.removeprefix("fxenorm/")
    return next((tests for pattern, tests in TESTS.items() if fnmatch(inside, pattern)), [])


class Judge:
    """Judges mutants in one copy of the working tree, by the reaches that were recorded."""

    def __init__(self, copy: Path, state: Path, seconds: float) -> None:
        self.copy = copy
        self.state = state
        self.seconds = seconds
        self.log = copy / ".mutant.log"
        self._reaches: dict[str, Reach] = {}
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # two mutants of one size and second would share their bytecode
        self._cache, self._clean_cache = copy / ".mutant-cache", copy / ".clean-cache"
        os.environ["XDG_CACHE_HOME"] = str(self._clean_cache)
        in_a_fork(_build, copy, self.log, _BUILD_LIMIT)  # once, not once a mutant
        os.environ["XDG_CACHE_HOME"] = str(self._cache)

    def reach_of(self, name: str) -> Reach | None:
        """What was recorded of a test file; None if nothing was, or its work is done in other processes."""
        path = self.state / "reach" / f"{name}.json.gz"
        if name not in self._reaches and path.exists() and name not in IN_OTHER_PROCESSES:
            self._reaches[name] = Reach.read(path)
        return self._reaches.get(name)

    def reaching(self, name: str, drawn: Drawn) -> set[str] | None:
        """The tests of a file that reach the mutant, the fastest up to so many seconds in all; None where all may."""
        found, reach = self._all_reaching(name, drawn), self.reach_of(name)
        if found is None or reach is None:
            return None
        kept: set[str] = set()
        spent = 0.0
        for test in sorted(found, key=lambda one: (reach.seconds[one], one)):
            spent += reach.seconds[test]
            if spent > self.seconds and kept:
                break
            kept.add(test)
        return kept

    def _all_reaching(self, name: str, drawn: Drawn) -> set[str] | None:
        reach = self.reach_of(name)
        if reach is None:
            return None
        failed = set(reach.failed)
        if not drawn.path.endswith(".py"):
            callers = [
                tests for path, tests in reach.lines.items() if any(fnmatch(path, f"fxenorm/{one}") for one in CALL_NATIVE)
            ]
            return set().union(*callers) - failed
        source = (self.copy / drawn.path).read_text(encoding="utf-8")
        lines, inside = statement_lines(source, drawn.position[0])
        by_test = reach.lines.get(drawn.path, {})
        if not inside or lines is None:
            return set(reach.seconds) - failed
        old = self.state / "reach" / "sources" / reach.sources.get(drawn.path, "")
        if old.is_file():
            moved = same_lines(source, old.read_text(encoding="utf-8"))
            wanted = {moved[line] for line in lines if line in moved}
            if len(wanted) == len(lines):
                return {test for test, reached in by_test.items() if not wanted.isdisjoint(reached)} - failed
        return set(by_test) - failed

    def judge(self, drawn: Drawn) -> Verdict | None:
        """Write the mutant, run its row and then the wider set, and put the source back; None if it does not build."""
        path = self.copy / drawn.path
        kept = path.read_bytes()
        row = self._that_reach(row_of(drawn.path), drawn)
        first, others = row[:_FIRST], [name for name in row[_FIRST:] if name in IN_OTHER_PROCESSES]
        rest = [name for name in row[_FIRST:] if name not in others]
        wider = self._run(WIDER, drawn)
        runs = [*(self._run(names, drawn) for names in ([drawn.path, *first], rest, others) if names), wider]
        reached_by = sum(len(run.chosen) for run in runs)
        path.write_text(drawn.text, encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()
        try:
            if drawn.path.endswith(".py"):
                if self._clean_cache.is_dir():
                    shutil.copytree(self._clean_cache, self._cache)
            elif in_a_fork(_build, self.copy, self.log, _BUILD_LIMIT) != 0:
                return None
            for run in runs if drawn.path.endswith(".py") else runs[:-1]:  # the wider set says nothing about native sources
                status = in_a_fork(run.start, self.copy, self.log, run.limit) if run.files else _NO_TEST_RAN
                if status is None:
                    return Verdict(_WIDER if run is wider else _ROW, True, reached_by, f"longer than {run.limit:.0f} s")
                if status not in (0, _NO_TEST_RAN):
                    said = self.log.read_text(encoding="utf-8", errors="replace")
                    return Verdict(_WIDER if run is wider else _ROW, False, reached_by, said[-1500:])
            return Verdict("", False, reached_by, "")
        finally:
            path.write_bytes(kept)
            shutil.rmtree(self._cache, ignore_errors=True)

    def _that_reach(self, names: list[str], drawn: Drawn) -> list[str]:
        """Those of the test files that have a test which may notice."""
        return [name for name in names if self.reaching(name, drawn) != set() or self._has_changed(name)]

    def _run(self, names: list[str], drawn: Drawn) -> _Run:
        """The tests of some files that may notice."""
        files: list[str] = []
        seconds: dict[str, float] = {}
        chosen: set[str] = set()
        limit = 30.0
        for name in names:
            reach, reaching = self.reach_of(name), self.reaching(name, drawn)
            if reach is None and name not in IN_OTHER_PROCESSES and name != drawn.path:
                continue  # `run` has said that it has no record
            if reach is not None:
                seconds |= reach.seconds
            if reach is not None and reaching is not None:
                chosen |= reaching
                limit += 2.0 * sum(reach.seconds[test] for test in reaching)
            elif place_of(name).endswith(".py"):
                limit += 10.0 if "/" in name else 300.0
            if reaching is None or reaching or self._has_changed(name):
                files.append(name)
        return _Run([name for name in files if place_of(name).endswith(".py")], seconds, chosen, limit)

    def _has_changed(self, name: str) -> bool:
        """Whether the test file has changed since its reach was recorded."""
        reach = self.reach_of(name)
        return reach is None or reach.test_file != digest_of_tests(self.copy, name)

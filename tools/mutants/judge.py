"""Judge one mutant: run the tests that can reach it, one file a fork, until one notices."""

from __future__ import annotations

import difflib
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from forked import in_a_fork
from mutants import statement_lines
from reach import PYTEST, Reach, digest
from session import Drawn
from table import IN_OTHER_PROCESSES, TESTS, WIDER

_NO_TEST_RAN = 5  # pytest's exit status


@dataclass(frozen=True)
class Verdict:
    """Who noticed a mutant ("" if nobody), whether by the time limit, how many tests could reach it, and what was said."""

    noticed_by: str
    by_limit: bool
    reached_by: int
    said: str


class _Chosen:
    """A pytest plugin: of the tests that are known, those that reach the mutant, the fast ones first; every unknown one."""

    def __init__(self, reach: Reach | None, reaching: set[str] | None) -> None:
        self.reach = reach
        self.reaching = reaching

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self.reach is None or self.reaching is None:
            return
        seconds = self.reach.seconds
        items[:] = [item for item in items if item.nodeid not in seconds or item.nodeid in self.reaching]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def row_of(path: str) -> list[str]:
    """The test files of the first row of the table that matches a source."""
    inside = path.removeprefix("fxenorm/")
    return next((tests for pattern, tests in TESTS.items() if fnmatch(inside, pattern)), [])


def tests_of(path: str) -> list[str]:
    """The test files that a mutant of a source meets: its row, then the wider set, which says nothing about native sources."""
    return list(dict.fromkeys([*row_of(path), *(WIDER if path.endswith(".py") else [])]))


@cache
def _line_in_old(new: str, old: str) -> dict[int, int]:
    matcher = difflib.SequenceMatcher(None, new.splitlines(), old.splitlines(), autojunk=False)
    return {a + k + 1: b + k + 1 for a, b, size in matcher.get_matching_blocks() for k in range(size)}


class Judge:
    """Judges mutants in one copy of the working tree, by the reaches that were recorded."""

    def __init__(self, copy: Path, state: Path) -> None:
        self.copy = copy
        self.state = state
        self.log = copy / ".mutant.log"
        self._reaches: dict[str, Reach] = {}
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # two mutants of one size and second would share their bytecode
        os.environ["XDG_CACHE_HOME"] = str(copy / ".mutant-cache")

    def reach_of(self, name: str) -> Reach | None:
        """What was recorded of a test file; None if nothing was, or its work is done in other processes."""
        path = self.state / "reach" / f"{name}.json.gz"
        if name not in self._reaches and path.exists() and name not in IN_OTHER_PROCESSES:
            self._reaches[name] = Reach.read(path)
        return self._reaches.get(name)

    def reaching(self, name: str, drawn: Drawn) -> set[str] | None:
        """The tests of a file that reach the mutant; None where all may."""
        reach = self.reach_of(name)
        if reach is None or not drawn.path.endswith(".py"):
            return None
        failed = set(reach.failed)
        source = (self.copy / drawn.path).read_text(encoding="utf-8")
        lines, inside = statement_lines(source, drawn.position[0])
        by_test = reach.lines.get(drawn.path, {})
        if not inside or lines is None:
            return set(reach.seconds) - failed
        old = self.state / "reach" / "sources" / reach.sources.get(drawn.path, "")
        if old.is_file():
            moved = _line_in_old(source, old.read_text(encoding="utf-8"))
            wanted = {moved[line] for line in lines if line in moved}
            if len(wanted) == len(lines):
                return {test for test, reached in by_test.items() if not wanted.isdisjoint(reached)} - failed
        return set(by_test) - failed

    def judge(self, drawn: Drawn) -> Verdict:
        """Write the mutant, run its row and the wider set, and put the source back."""
        path = self.copy / drawn.path
        kept = path.read_bytes()
        reached_by = 0
        plan = [(name, self.reaching(name, drawn)) for name in tests_of(drawn.path)]
        path.write_text(drawn.text, encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()
        try:
            for name, reaching in plan:
                reach = self.reach_of(name)
                if reaching is not None and not reaching and reach is not None and not self._has_unknown(name):
                    continue
                reached_by += len(reaching) if reaching is not None else 1
                seconds = sum(reach.seconds[test] for test in reaching or ()) if reach is not None else 300.0
                limit = 120.0 + 5.0 * seconds
                chosen = _Chosen(reach, reaching)

                def work(name: str = name, chosen: _Chosen = chosen) -> int:
                    return int(pytest.main([*PYTEST, "-x", "--tb=line", f"tests/{name}.py"], plugins=[chosen]))

                status = in_a_fork(work, self.copy, self.log, limit)
                if status is None:
                    return Verdict(name, True, reached_by, f"longer than {limit:.0f} s")
                if status not in (0, _NO_TEST_RAN):
                    said = self.log.read_text(encoding="utf-8", errors="replace")
                    return Verdict(name, False, reached_by, said[-1500:])
            return Verdict("", False, reached_by, "")
        finally:
            path.write_bytes(kept)
            shutil.rmtree(self.copy / ".mutant-cache", ignore_errors=True)

    def _has_unknown(self, name: str) -> bool:
        """Whether the test file has changed since its reach was recorded."""
        reach = self.reach_of(name)
        return reach is None or reach.test_file != digest(self.copy / "tests" / f"{name}.py")

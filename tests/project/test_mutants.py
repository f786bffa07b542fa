"""tools/mutants: the table of its tests names every test file and every source, so that nothing new is forgotten."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from ..helpers import load_tool

ROOT = Path(__file__).parents[2]


TABLE = load_tool("mutants/table")
ASSIGNED = {name for row in [*TABLE.TESTS.values(), TABLE.WIDER] for name in row}
TEST_FILES = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_every_test_file_judges_mutants_or_is_listed_as_not_for_them() -> None:
    assert TEST_FILES - ASSIGNED - set(TABLE.NOT_FOR_MUTANTS) == set()


def test_the_table_names_files_that_exist_and_each_as_one_thing() -> None:
    named = ASSIGNED | set(TABLE.NOT_FOR_MUTANTS)
    assert named - TEST_FILES == set()
    assert ASSIGNED.isdisjoint(TABLE.NOT_FOR_MUTANTS)
    assert all(len(row) == len(set(row)) for row in TABLE.TESTS.values())
    assert set(TABLE.IN_OTHER_PROCESSES) <= ASSIGNED


@pytest.mark.parametrize("ending", ["py", "h", "cpp"])
def test_every_source_has_a_row_of_tests(ending: str) -> None:
    sources = [path.relative_to(ROOT / "fxenorm").as_posix() for path in (ROOT / "fxenorm").rglob(f"*.{ending}")]
    inside = [source for source in sources if "/" in source and not source.endswith("__init__.py")]
    assert inside
    assert [source for source in inside if not any(fnmatch(source, pattern) for pattern in TABLE.TESTS)] == []


@pytest.mark.parametrize(("before", "count"), [("if (a < b && c) x += 2;", 2 + 1 + 1 + 2), ("// a < b\n#if A == 1\nf(&x);", 0)])
def test_native_mutants_change_code_alone(before: str, count: int) -> None:
    mutants = list(load_tool("mutants/native").native_mutants_of(before))
    assert len({mutant.text(before) for mutant in mutants} - {before}) == len(mutants) == count

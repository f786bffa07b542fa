"""The page of the study shows the table of the runs that are committed beside it, and names all starts and commands rightly."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from study import cli
from study.data.load import load_task
from study.protocol import missing
from study.records import Records
from study.report.conclusions import conclusions
from study.report.summary import sections
from study.report.table import markdown
from study.starts import STARTS

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "study"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +python tools/reproduce\.py (.*?)(?: +#.*)?$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_valid(line: str) -> None:
    assert cli.parse(shlex.split(line))


@pytest.mark.parametrize("line", [line for line in COMMANDS if "digits.jsonl" in line])
def test_the_tables_are_those_of_the_committed_runs(line: str) -> None:
    pytest.importorskip("sklearn", reason="the extra demo brings it")
    cells = cli.cells_of(cli.parse(shlex.split(line)), load_task("digits", "mlp", Path()).fingerprint)
    records = Records(FOLDER / "digits.jsonl")
    assert not any(missing(cell, records) for cell in cells), "nothing is to be trained"
    found = sections(cells, records)
    assert found and markdown(found).strip() in PAGE
    assert all(f"- {line}" in PAGE for line in conclusions(found))


def test_starts_and_pictures_are_there() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == set(STARTS)
    named = re.findall(r"\]\(([\w/]+\.png)\)", PAGE)
    assert set(named) == {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.png")} != set()
    for name in named:
        picture = (FOLDER / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 150_000

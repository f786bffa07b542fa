"""The page of the study shows the table of the runs that are committed beside it, and names all starts and commands rightly."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from study import cli
from study.data.load import load_task
from study.records import Records
from study.report.summary import sections
from study.report.table import markdown
from study.starts import STARTS

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "study"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +python tools/reproduce\.py (.*?)(?: +#.*)?$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_valid(line: str) -> None:
    assert cli.parse(shlex.split(line))


def test_the_table_is_that_of_the_committed_runs() -> None:
    pytest.importorskip("sklearn", reason="the extra demo brings it")
    (line,) = (line for line in COMMANDS if "digits.jsonl" in line)
    cells = cli.cells_of(cli.parse(shlex.split(line)), load_task("digits", "mlp", Path()).fingerprint)
    found = sections(cells, Records(FOLDER / "digits.jsonl"))
    assert len(found) == 1 and len(found[0]) >= 7
    assert markdown(found).strip() in PAGE


def test_starts_and_pictures_are_there() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == set(STARTS)
    for name in re.findall(r"\]\((\w+\.png)\)", PAGE):
        assert (FOLDER / name).read_bytes().startswith(b"\x89PNG")

"""The README of the package, for contributors: every file, function and word that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fxenorm

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fxenorm"
TEXT = (PACKAGE / "README.md").read_text(encoding="utf-8")
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_WORDS, MOST_LINES = 30, 12


def section(title: str) -> str:
    """The text under one heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"fxenorm/README.md has no section {title!r}"
    return found.group(1)


def file_of(span: str) -> Path | None:
    """The file or folder that a code span names; None: it names something else."""
    if not re.fullmatch(r"[\w./-]+(/|\.py|\.md|\.h|\.cpp)", span):
        return None
    return next((root / span for root in (PACKAGE, ROOT) if (root / span).exists()), PACKAGE / span)


def defined_in(path: Path) -> set[str]:
    """Functions, classes and constants of a file, and methods and fields as Class.name."""
    found: set[str] = set()

    def collect(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def missing(text: str) -> list[str]:
    """What the code spans of a text name and nothing defines: a name belongs to the file in front of it in its line, if any."""
    wrong: list[str] = []
    for line in text.splitlines():
        file = PACKAGE
        for span in re.findall(r"`([^`]+)`", line):
            named = file_of(span)
            if named is not None and not named.exists():
                wrong.append(f"no file {span}")
                break
            if named is not None:
                file = named
            elif file.suffix == ".py" and span not in defined_in(file) and not is_public(span):
                wrong.append(f"{span} is not defined in {file.relative_to(ROOT)}")
            elif file.suffix != ".py" and not is_public(span):
                wrong.append(f"{span}: no file stands in front of it, and users have nothing of that name")
    return wrong


def is_public(span: str) -> bool:
    """Whether users know a name: of the package, or of a plan, as "step" or "plan.step"."""
    return span in fxenorm.__all__ or span.removeprefix("plan.") in dir(fxenorm.Plan)


def rows(title: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def words_of(path: Path) -> set[str]:
    """The words of which the identifiers of a file and its own name are made: Held, held_by_group and _held give "held"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return {word.lower() for name in {path.stem, *names} for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def test_every_file_and_name_of_the_page_is_there() -> None:
    assert missing(TEXT) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("`rescale/no_such_file.py` `step`", "no file rescale/no_such_file.py"),
        ("`rescale/step.py` `step` and `leap`", "leap is not defined in fxenorm/rescale/step.py"),
        ("`rescale/balance.py` `BalanceResult.leap`", "BalanceResult.leap is not defined in fxenorm/rescale/balance.py"),
        ("the word `leap`", "leap: no file stands in front of it, and users have nothing of that name"),
    ],
)
def test_what_is_not_there_is_noticed(line: str, complaint: str) -> None:
    assert missing(f"`rescale/step.py` `step`\n{line}") == [complaint]


def test_every_room_stands_in_the_layout_once() -> None:
    named = re.findall(r"(?:^    |   )([a-z]+)/ ", section("The rooms"), flags=re.MULTILINE)
    assert sorted(named) == sorted({path.relative_to(PACKAGE).parts[0] for path in SOURCES if path.parent != PACKAGE})


@pytest.mark.parametrize("call", ["step", "balance"])
def test_the_way_of_a_call_is_short_and_each_line_names_a_function(call: str) -> None:
    lines = re.findall(r"^\d+\. .*(?:\n   .*)*", section(f"The way of `plan.{call}`"), flags=re.MULTILINE)
    assert 5 <= len(lines) <= MOST_LINES
    for line in lines:
        assert re.search(r"`[\w/]+\.py` `[\w.]+`", line), line


def test_each_word_is_one_sentence_and_occurs_in_the_file_beside_it() -> None:
    words = rows("Words")
    assert 0 < len(words) <= MOST_WORDS and len({word for word, *_ in words}) == len(words)
    for word, _, meaning, file in words:
        assert meaning.endswith(".") and ". " not in meaning.replace("a . s", ""), word
        found = words_of(PACKAGE / file.strip("`"))
        assert {word, f"{word}s", word.removesuffix("s")} & found, f"{file} has no {word}"


def test_the_first_readme_leads_here() -> None:
    assert "(fxenorm/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")

"""The reference: every public name has a page with an example that runs, the tables are whole, and no link is dead."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fxenorm
from fxenorm.optim.registry import supported_optimizers

from ..helpers import load_tool

pytest.importorskip("pdoc", reason="the extra dev brings it")
REFERENCE = load_tool("reference")
ROOT = Path(__file__).resolve().parents[2]


def documented() -> Iterator[tuple[str, Any]]:
    """All public names and the public members of classes, with what they name."""
    for name, thing in REFERENCE.public_names().items():
        yield name, thing
        if inspect.isclass(thing):
            yield from ((f"{name}.{member}", value) for member, value in REFERENCE.public_members(thing).items())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages by name; a warning while they are built is an error."""
    folder = tmp_path_factory.mktemp("reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        REFERENCE.build(folder)
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


def examples(thing: Any) -> list[doctest.Example]:
    """The examples in the docstring of a name; of a module, those of its members too."""
    texts = [getattr(thing, "__func__", thing).__doc__ or ""]
    if isinstance(thing, ModuleType):
        texts += [getattr(thing, name).__doc__ or "" for name in thing.__all__]
    return [example for text in texts for example in doctest.DocTestParser().get_examples(text)]


def test_every_public_name_and_method_has_an_example() -> None:
    """Doctest runs it with the other tests."""
    names = [name for name, _ in documented()]
    assert len(names) > 60 and "Plan.from_dict" in names and "Plan.norm" in names and "Plan.rescaler" not in names
    assert [name for name, thing in documented() if not examples(thing)] == []
    assert [name for name, thing in documented() if any(example.options for example in examples(thing))] == []


def test_members_without_a_page_are_there() -> None:
    assert [name for name in REFERENCE.INTERNAL if not hasattr(getattr(fxenorm, name.split(".")[0]), name.split(".")[1])] == []


def test_every_example_stands_where_doctest_looks() -> None:
    """A name of the package is defined in one of its own modules, whose docstrings are run."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    homes: dict[str, set[str]] = {}
    for name, thing in documented():
        inner = thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
        if isinstance(inner, ModuleType):
            continue
        home = inner.__globals__["__name__"] if inspect.isfunction(inner) else inner.__module__
        if home not in homes:
            module = importlib.import_module(home)
            homes[home] = {test.name.removeprefix(f"{home}.") for test in finder.find(module, home) if test.examples}
        assert name in homes[home] or (home == "fxenorm.plan.plan" and name == "plan_from_dict"), name


def test_every_name_and_member_has_its_place(pages: dict[str, str]) -> None:
    for name, thing in documented():
        if inspect.ismodule(thing):
            html = pages[f"fxenorm.{name}"]
            assert [member for member in thing.__all__ if f'id="{member}"' not in html] == [], name
            continue
        html = pages[name.partition(".")[0]]
        assert f'id="{name}"' in html, name
    assert fxenorm.errors.__all__
    assert not any("rescaler" in re.findall(r'id="([^"]+)"', html) for html in pages.values())


def test_no_link_is_dead(pages: dict[str, str]) -> None:
    for page, html in pages.items():
        for target in re.findall(r'href="([^"]+)"', html):
            if target.startswith(("http", "data:")):
                continue
            file, _, place = target.partition("#")
            found = pages.get(file.removesuffix(".html") if file else page)
            assert found is not None, (page, target)
            assert not place or f'id="{place}"' in found, (page, target)


def test_the_first_page_leads_to_all_others(pages: dict[str, str]) -> None:
    assert {f"{page}.html" for page in pages} == {"index.html", *re.findall(r'href="([\w.-]+\.html)"', pages["index"])}
    assert [page for page, html in pages.items() if page != "index" and 'href="index.html"' not in html] == []


def test_the_options_are_those_of_analyze(pages: dict[str, str]) -> None:
    parameters = inspect.signature(fxenorm.analyze).parameters
    told = REFERENCE.options_of_analyze()
    assert list(told) == [name for name in parameters if name not in REFERENCE.ARGUMENTS_OF_ANALYZE]
    assert all(default == repr(parameters[name].default) and len(text.split()) >= 4 for name, (default, text) in told.items())
    rows = re.findall(r"<tr>\s*<td><code>(\w+)</code></td>", pages["options"])
    assert rows == list(told)


def test_every_optimizer_and_operator_with_a_rule_has_a_row(pages: dict[str, str]) -> None:
    text = {name: re.sub(r"<[^>]+>", "", html) for name, html in pages.items()}
    assert [name for name in supported_optimizers() if name.startswith("torch.") and name not in text["optimizers"]] == []
    assert "timm.optim.lion.Lion" in text["optimizers"] and "Coupled weight decay" in text["optimizers"]
    own = [rule.operator for rule in REFERENCE.iterate_rules() if not rule.own]
    assert len(own) > 500 and [name for name in own if name not in text["operators"]] == []


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("processes", ("DistributedDataParallel", "fully_shard", "hangs")),
        ("kernels", ("C++", "backend=")),
        ("releases", ("before 2.15", "Muon")),
        ("fxenorm-inspect", ("usage: ", "--json", "--pairs")),
        ("index", ("Trace.", "Solve.", "analyze")),
    ],
)
def test_what_is_for_users_stands_there(pages: dict[str, str], page: str, words: tuple[str, ...]) -> None:
    assert [word for word in words if word not in pages[page]] == []
    assert "In: " not in re.sub(r"<[^>]+>", "", pages[page])  # that part of a docstring is for contributors


def test_the_pages_load_nothing_from_elsewhere(pages: dict[str, str]) -> None:
    for page, html in pages.items():
        assert re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(?!data:|\s*data:)[^"]*"', html) == [], page


def test_the_folder_is_not_committed() -> None:
    default = ROOT / "build" / "reference" / "index.html"
    found = subprocess.run(["git", "check-ignore", "-q", str(default)], cwd=ROOT, capture_output=True)
    assert found.returncode in (0, 128)  # 128: no repository, as in an unpacked source distribution
    assert "usage" not in (ROOT / "tools" / "reference").read_text() and (ROOT / "tools" / "reference").stat().st_mode & 0o100

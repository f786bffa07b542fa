"""What README.md says is run: its Python blocks, its recipes, its commands, its table of options."""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    """The text under one heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"README.md has no section {title!r}"
    return found.group(1)


def table_rows(title: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


class Small(nn.Module):
    """A network with what the recipes speak of: biases, a BatchNorm, an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.middle = nn.Linear(5, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.body(x))))


def make_namespace() -> dict[str, Any]:
    """A model, its optimizer after one backward pass, an input, and a plan, as the recipes name them."""
    torch.manual_seed(0)
    model = Small().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    model(x).square().sum().backward()
    names = {"model": model, "x": x, "optimizer": optimizer, "plan": fxenorm.analyze(model), "other": copy.deepcopy(model)}
    return names | {"fxenorm": fxenorm, "json": json, "math": math, "torch": torch}


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs in eval and in train mode; the model's buffers stay as they are."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        return [model.train(mode)(x) for mode in (False, True)]


def largest_change(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference of an output, relative to the largest output."""
    return max(float((b - a).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True))


def recipes() -> list[Any]:
    """The table of recipes as test parameters: the code spans of the second column and the third column."""
    return [pytest.param(re.findall(r"`([^`]+)`", code), exact, id=name) for name, code, exact in table_rows("Recipes")]


def test_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    capsys.readouterr()


def test_the_shown_plan_is_what_the_first_block_prints() -> None:
    namespace: dict[str, Any] = {}
    exec(compile(blocks("python")[0], "README.md", "exec"), namespace)
    assert str(namespace["plan"]).split() == section("Two lines").split("```text\n")[1].split("```")[0].split()


def test_the_shown_answer_is_what_its_block_prints(capsys: pytest.CaptureFixture[str]) -> None:
    own = section("Why is a channel not free?")
    namespace: dict[str, Any] = {"fxenorm": fxenorm, "nn": nn, "torch": torch}
    (block,) = re.findall(r"^```python\n(.*?)^```$", own, flags=re.DOTALL | re.MULTILINE)
    exec(compile(block, "model.py", "exec"), namespace)
    assert capsys.readouterr().out == own.split("```text\n")[1].split("```")[0]


def test_the_words_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from fxenorm.inspect.cli import main
    from fxenorm.inspect.glossary import GLOSSARY

    lines = [line for line in section("Words").splitlines() if line.startswith("| ")][1:]
    assert [line.replace("\\|", "|") for line in lines] == [f"| {word} | {meaning} |" for word, meaning in GLOSSARY]
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{word} {meaning}" in told for word, meaning in GLOSSARY)
    assert len({word for word, _ in GLOSSARY}) == len(GLOSSARY) >= 12


@pytest.mark.parametrize(("spans", "exact"), recipes())
def test_recipe(spans: list[str], exact: str, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = make_namespace()
    assert spans
    for span in spans:
        before = {name: outputs(namespace[name], namespace["x"]) for name in ("model", "other")}
        exec(compile(span, "README.md", "exec"), namespace)
        if span != "optimizer.step()" and exact == "yes":
            for name, values in before.items():
                assert largest_change(values, outputs(namespace[name], namespace["x"])) < 1e-10, span
    assert namespace["plan"].exact == (exact == "yes")
    assert bool(namespace["plan"].inexact_reasons) == (exact == "no")
    capsys.readouterr()


def test_the_recipes_are_all_there() -> None:
    wanted = ("train", "original", "quantise", "canonical", "undo")
    names = [row[0] for row in table_rows("Recipes")]
    assert [word for word in wanted if not any(word in name for name in names)] == []


def test_undo_restores_the_weights() -> None:
    namespace = make_namespace()
    before = copy.deepcopy(namespace["model"].state_dict())
    (spans,) = (re.findall(r"`([^`]+)`", code) for name, code, _ in table_rows("Recipes") if name == "undo")
    for span in spans:
        exec(compile(span, "README.md", "exec"), namespace)
    for name, value in namespace["model"].state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-10, atol=0.0)


def test_options_table_agrees_with_analyze() -> None:
    parameters = inspect.signature(fxenorm.analyze).parameters
    positional = {"model", "example_inputs", "example_kwargs"}
    documented = {name.strip("`"): default.strip("`") for name, default, _ in table_rows("Options of `analyze`")}
    actual = {name: parameter.default for name, parameter in parameters.items() if name not in positional and name[0] != "_"}
    assert list(documented) == list(actual)
    for name, default in actual.items():
        assert eval(documented[name]) == default, name


def commands() -> list[Any]:
    """(arguments, shown output) of the fxenorm-inspect commands in console blocks."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            if command.startswith("fxenorm-inspect"):
                found.append(pytest.param(command.split()[1:], shown, id=command))
    return found


def words(text: str) -> list[str]:
    """The words of an output; numbers with a decimal point are random weights' and count as equal."""
    return re.sub(r"\d+\.\d+(e[-+]\d+)?", "#", text).split()


@pytest.mark.parametrize(("arguments", "shown"), commands())
def test_shown_command_prints_what_is_shown(
    arguments: list[str], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fxenorm.inspect.cli import main

    for name, source in re.findall(r"^\$ cat (\S+)\n(.*?)(?=^\$ )", "\n".join(blocks("console")), flags=re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    try:
        status = main(arguments)  # without arguments it would fork, and the child would go on with these tests
    except SystemExit as stop:
        status = stop.code
    assert not status
    assert words(capfd.readouterr().out) == words(shown)


def test_there_is_a_shown_command() -> None:
    assert commands()


def test_named_files_exist() -> None:
    named = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT) + re.findall(
        r"`((?:tools|tests|notebooks|fxenorm)/[\w./]+)[^`]*`", TEXT
    )
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []

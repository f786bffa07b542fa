"""What README.md says is run: its Python blocks, its commands; and the recipes on the page of `Plan`."""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import math
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm

from ..helpers import load_tool

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    """The text under one heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"README.md has no section {title!r}"
    return found.group(1)


def table_rows(text: str) -> list[list[str]]:
    """The cells of the table in a text, without its head."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    return [[cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines[2:]]


RECIPES = [
    (name, code, "no" if inexact else "yes")
    for name, inexact, code in re.findall(
        r"^- ([^(\n]+) \((not )?exact\):\s(.*?)(?=^- |^$)", inspect.getdoc(fxenorm.Plan) or "", flags=re.DOTALL | re.MULTILINE
    )
]


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
    return [pytest.param(re.findall(r"`([^`]+)`", code), exact, id=name) for name, code, exact in RECIPES]


def examples() -> list[Any]:
    """The Python blocks of each section, in order; a line that begins with bold words begins a section of its own."""
    found: dict[str, list[str]] = {}
    title = ""
    for heading, code in re.findall(r"^(?:## |\*\*)(\w[\w ]*)|^```python\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE):
        title = heading or title
        if code:
            found.setdefault(title, []).append(code)
    return [pytest.param(code, id=title) for title, code in found.items()]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, and no trace of an earlier Accelerator."""
    monkeypatch.chdir(tmp_path)
    yield
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.filterwarnings("ignore")  # trainers warn of themselves
@pytest.mark.parametrize("code", examples())
def test_example_runs_by_itself(code: list[str], fresh: None) -> None:
    """Those of one heading run in order; none needs anything of another heading."""
    for name in re.findall(r"^(?:import|from) ([\w., ]+?)(?: import .*)?$", "".join(code), flags=re.MULTILINE):
        for module in name.split(", "):
            pytest.importorskip(module.split(".")[0], reason="an extra brings it")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    torch.manual_seed(0)
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
        plan = namespace.get("plan") or getattr(namespace.get("callback"), "plan", None)
        assert plan is None or plan.num_scales > 0


def test_all_examples_are_there() -> None:
    names = [case.id for case in examples()]
    trainers = ["PyTorch", "Lightning", "Transformers", "Accelerate", "timm"]
    wanted = ["Two lines", *trainers, "Quantise", "Compare", "Your own operator and optimizer"]
    assert names == wanted
    assert sum(len(case.values[0]) for case in examples()) == len(blocks("python"))
    lengths = {case.id: sum(len(block.splitlines()) for block in case.values[0]) for case in examples()}
    assert max(lengths.values()) <= 30, lengths


def run_example(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The names and the output of one example."""
    namespace: dict[str, Any] = {}
    (code,) = [case.values[0] for case in examples() if case.id == name]
    torch.manual_seed(0)
    exec(compile("".join(code), "README.md", "exec"), namespace)
    return namespace, capsys.readouterr().out


def test_the_shown_plan_is_what_the_first_block_prints(capsys: pytest.CaptureFixture[str]) -> None:
    namespace, _ = run_example("Two lines", capsys)
    assert str(namespace["plan"]).split() == section("Two lines").split("```text\n")[1].split("```")[0].split()


def test_balancing_makes_the_quantised_model_better(capsys: pytest.CaptureFixture[str]) -> None:
    namespace, out = run_example("Quantise", capsys)
    result = namespace["result"]
    assert not result.undone and result.rounding_after < 0.5 * result.rounding_before
    assert "worth it" in out and "->" in out


def test_canonical_forms_of_one_function_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = run_example("Compare", capsys)
    before, after = (float(value) for value in re.findall(r"tensor\(([\d.e+-]+)", out))
    assert before > 1 and after < 1e-4


def test_torchao_quantises_as_the_sentence_says(capsys: pytest.CaptureFixture[str]) -> None:
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e", reason="the sentence speaks of it as installed")
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    namespace, _ = run_example("Quantise", capsys)
    namespace |= {"prepare_pt2e": pt2e.prepare_pt2e, "convert_pt2e": pt2e.convert_pt2e}
    namespace["quantizer"] = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    for span in re.findall(r"`([^`]*(?:prepared|pt2e)\([^`]*)`", section("Quantise")):
        exec(span, namespace)
    model, x = namespace["model"], namespace["x"]
    assert float((namespace["converted"](x) - model(x)).norm()) < 0.1 * float(model(x).norm())


def test_own_rules_hold(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = run_example("Your own operator and optimizer", capsys)
    assert "verified: outputs unchanged" in out and "the rule for MyAdam holds" in out


def test_the_words_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from fxenorm.inspect.cli import main
    from fxenorm.inspect.glossary import GLOSSARY

    cells = [cell for row in table_rows(section("Words")) for cell in row]
    told_here = dict(zip(cells[::2], cells[1::2], strict=True))
    assert {word: told_here.get(word) for word, _ in GLOSSARY} == dict(GLOSSARY)
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
    names = [row[0] for row in RECIPES]
    assert [word for word in wanted if not any(word in name for name in names)] == []


def test_undo_restores_the_weights() -> None:
    namespace = make_namespace()
    before = copy.deepcopy(namespace["model"].state_dict())
    (spans,) = (re.findall(r"`([^`]+)`", code) for name, code, _ in RECIPES if name == "undo")
    for span in spans:
        exec(compile(span, "README.md", "exec"), namespace)
    for name, value in namespace["model"].state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-10, atol=0.0)


def commands() -> list[Any]:
    """(arguments, shown output) of the fxenorm-inspect commands in console blocks."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            if command.startswith("fxenorm-inspect"):
                found.append(pytest.param(command.split()[1:], shown, id=command))
    return found


def lines_of_code() -> list[str]:
    """All command lines: in console blocks and in code spans."""
    spans = re.findall(r"`([^`\n]+)`", PROSE)
    shown = re.findall(r"^\$ (.*)$", "\n".join(blocks("console")), flags=re.MULTILINE)
    spans = [f"pip install {span}" if span.startswith('".[') else span for span in spans]
    return [line for line in [*spans, *shown] if re.match(r"(tools/|python |pip |fxenorm-inspect )", line)]


def test_commands_on_the_shown_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In order; the weights that they name are those of the shown model."""
    safetensors = pytest.importorskip("safetensors.torch", reason="Transformers and timm bring it")
    from fxenorm.inspect.cli import main

    spans = [line for line in lines_of_code() if line.startswith("fxenorm-inspect model.py ")]
    assert len(spans) >= 4
    monkeypatch.chdir(tmp_path)
    (source,) = re.findall(r"^\$ cat model.py\n(.*?)(?=^\$ )", "\n".join(blocks("console")), flags=re.DOTALL | re.MULTILINE)
    Path("model.py").write_text(source, encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    safetensors.save_file(namespace["model"].state_dict(), "a.safetensors")
    for line in spans:
        assert main(shlex.split(line)[1:]) == 0, line
    assert Path("b.safetensors").exists() and Path("b.safetensors.log_scales.json").exists()
    assert "verified: outputs unchanged" in capfd.readouterr().out


class Parsed(Exception):
    """The arguments of a program are valid."""


@pytest.mark.parametrize("line", sorted(set(lines_of_code())))
def test_command_line_is_valid(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is there and takes these arguments; it is not run."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    program, *arguments = shlex.split(line)
    if program == "pip":
        extras = re.findall(r"\w+", "".join(arguments[1:]))
        known = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
        assert arguments[0] == "install" and all(f"\n{extra} = [" in known for extra in extras)
        return
    if program == "fxenorm-inspect":
        from fxenorm.inspect.cli import main

        with pytest.raises(Parsed):
            main(arguments)
        return
    script = ROOT / (arguments.pop(0) if program == "python" else program)
    assert script.exists() and (program == "python" or os.access(script, os.X_OK))
    if script == ROOT / "tools" / "test":
        usage = script.read_text()
        assert not arguments or f"#   tools/test {arguments[0]}" in usage
        return
    source = script if program == "python" else script.with_suffix(".py")
    if source.exists():
        monkeypatch.setattr(sys, "argv", [str(source), *arguments])
        with pytest.raises(Parsed):
            runpy.run_path(str(source), run_name="__main__")


def test_there_are_command_lines_of_each_kind() -> None:
    assert {line.split()[0] for line in lines_of_code()} >= {
        "pip",
        "python",
        "fxenorm-inspect",
        "tools/test",
        "tools/demo",
        "tools/reference",
    }


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
    printed, place = words(capfd.readouterr().out), 0
    parts = [words(part) for part in re.split(r"^  \.\.\.\n", shown, flags=re.MULTILINE)]  # where lines are left out
    for part in parts:
        place = next(start for start in range(place, len(printed)) if printed[start : start + len(part)] == part) + len(part)
    assert place == len(printed) and printed[: len(parts[0])] == parts[0]


def test_there_is_a_shown_command() -> None:
    assert commands()


def test_the_picture_can_be_drawn_again(tmp_path: Path) -> None:
    """Its words may follow another version of matplotlib; so its size alone is looked at."""
    picture = load_tool("picture")
    assert picture.main(["--output", str(tmp_path / "picture.png")]) == 0
    kept, drawn = (path.read_bytes() for path in (picture.DEFAULT, tmp_path / "picture.png"))
    assert kept[:8] == drawn[:8] == b"\x89PNG\r\n\x1a\n" and len(kept) < 100_000
    assert f'src="{picture.DEFAULT.relative_to(ROOT)}"' in TEXT
    sizes = [(int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) for png in (kept, drawn)]
    assert all(abs(a - b) <= 0.1 * a for a, b in zip(*sizes, strict=True))


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 300


def test_named_files_exist() -> None:
    named = re.findall(r"\]\((?!https?:)([^)#]+)\)", PROSE) + re.findall(
        r"`((?:tools|tests|notebooks|fxenorm)/[\w./]+)[^`]*`", PROSE
    )
    named = [name for name in named if not name.startswith("fxenorm/") or "." in name]  # fxenorm/norm is a value's name
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []

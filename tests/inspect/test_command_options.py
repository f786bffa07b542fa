"""The options of ``fxenorm-inspect``: those of `analyze` are all there, and bad values are one line."""

from __future__ import annotations

import inspect
import io
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fxenorm
from fxenorm.errors import OptionError
from fxenorm.inspect.arguments.analysis_options import ANALYSIS_OPTIONS, analysis_options
from fxenorm.inspect.arguments.parser import build_parser, parse
from fxenorm.inspect.cli import main
from fxenorm.inspect.wording import in_words_of_the_command

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(x).relu())
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.py"
    path.write_text(textwrap.dedent(NET))
    return str(path)


def test_every_option_of_analyze_is_on_the_command_line_with_its_default() -> None:
    parameters = inspect.signature(fxenorm.analyze).parameters
    wanted = {name: kind.default for name, kind in parameters.items() if kind.kind is kind.KEYWORD_ONLY}
    del wanted["example_kwargs"]
    assert {option.name: option.default for option in ANALYSIS_OPTIONS} == wanted
    assert analysis_options(parse(["model.py"])) == wanted


@pytest.mark.parametrize("option", [option for option in ANALYSIS_OPTIONS if option.choices], ids=lambda option: option.name)
def test_the_choices_are_those_of_analyze(option) -> None:
    with pytest.raises(OptionError) as told:
        fxenorm.analyze(fxenorm_net(), **{option.name: "no such choice"})
    assert sorted(re.findall(r"'([\w-]+)'", str(told.value).partition("expected")[2])) == sorted(option.choices)


def fxenorm_net():
    from torch import nn

    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


GIVEN = [
    ("--p inf", {"p": float("inf")}),
    ("--c 1.5", {"c": 1.5}),
    ("--c adaptive", {"c": "adaptive"}),
    ("--c first=2 --c second=0.5", {"c": {"first": 2.0, "second": 0.5}}),
    ("--no-balance-last", {"balance_last": False}),
    ("--exclude a* --exclude b", {"exclude": ("a*", "b")}),
    ("--outputs logits", {"outputs": ("logits",)}),
    ("--approximate relu6", {"approximate": ("relu6",)}),
    ("--solver gauss-seidel --scales pow2", {"solver": "gauss-seidel", "scales": "pow2"}),
    ("--deadband 0.01", {"deadband": 0.01}),
    ("--backend eager --max-log-scale 0.5", {"backend": "eager", "max_log_scale": 0.5}),
    ("--on-unknown error --modes eval --batchnorm frozen", {"on_unknown": "error", "modes": "eval", "batchnorm": "frozen"}),
]


@pytest.mark.parametrize(("line", "expected"), GIVEN)
def test_values_are_read(line: str, expected: dict) -> None:
    found = analysis_options(parse([*line.split(), "model.py"]))
    assert {name: found[name] for name in expected} == expected


BAD = [
    ("--p 0", "--p"),
    ("--p 0.01", "--p 0.01 is not a valid option: expected a number from 0.1"),
    ("--p x", "--p"),
    ("--c -1", "--c"),
    ("--c first=", "--c"),
    ("--c 1 --c 2", "--c: give it once, or as LAYER=NUMBER"),
    ("--c 1 --c first=2", "--c: give it once, or as LAYER=NUMBER"),
    ("--batchnorm none", "--batchnorm.*choose from"),
    ("--biases none", "--biases.*choose from"),
    ("--modes none", "--modes.*choose from"),
    ("--solver none", "--solver.*choose from"),
    ("--backend none", "--backend.*choose from"),
    ("--scales none", "--scales.*choose from"),
    ("--on-unknown none", "--on-unknown.*choose from"),
    ("--max-log-scale 0", "--max-log-scale"),
    ("--max-log-scale inf", "--max-log-scale"),
    ("--deadband 2", "--deadband"),
    ("--bits 8", "--bits"),
    ("--jobs 0", "--jobs"),
    ("--jobs two", "--jobs"),
    ("--approximate linear", "--approximate 'linear' is not a valid option: expected"),
    ("--outputs nobody", "nobody"),
    ("--batchnorm frozen --modes train", "--batchnorm 'frozen'.*--modes 'train'"),
    ("--input 2x", "--input.*expected sizes"),
    ("--input 2x4:floot", "--input.*unknown data type"),
    ("--input =2x4", "--input.*is no name of an argument"),
    ("--input a=2 --input a=3", "--input: each name is given once"),
    ("--input 2x9", "does not run"),
    ("--seed x", "--seed"),
    ("--layer frist", "the nearest are: first"),
    ("--weights absent.pt", "no such file: absent.pt"),
    ("--balance out.pt", "--weights FILE"),
    ("--undo log_scales.json", "--undo: name the file to write, with --balance OUT"),
    ("--compare absent.pt other.pt", "no such file: absent.pt"),
    ("--dot nowhere/pairs.dot", "there is no folder nowhere"),
    ("--html nowhere/report.html", "there is no folder nowhere"),
    ("--svg nowhere/picture.svg", "there is no folder nowhere"),
    ("--print-completion fish", "--print-completion.*choose from"),
    ("--no-such-option", "--no-such-option"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_value_is_one_line_and_exit_code_2(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main([model, *line.split()])
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr()
    assert code == 2 and told.out == "" and told.err.count("\n") == 1, told.err
    assert told.err.startswith("fxenorm-inspect: error: ") and re.search(message, told.err), told.err
    assert "example_inputs:" not in told.err and sorted(tmp_path.rglob("*")) == before


def test_messages_speak_of_options() -> None:
    said = in_words_of_the_command("pass on_unknown='error' or balance_last=False; xp=3 and a.p=3 stay, p=2 does not")
    assert said == "pass --on-unknown 'error' or --balance-last False; xp=3 and a.p=3 stay, --p 2 does not"
    assert "--input" in in_words_of_the_command("Pass example_inputs that the model runs on.")


def refused(tmp_path: Path, forward: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The error for a model whose forward this is, without inputs."""
    path = tmp_path / "model.py"
    path.write_text(NET.replace("return self.second(self.first(x).relu())", forward))
    assert main([str(path)]) == 2
    return capsys.readouterr().err


def test_failed_guesses_with_one_reason_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(tmp_path, "raise ValueError('no such luck')", capsys)
    assert told.count("no such luck") == 1 and re.search(r"and \d+ more: ValueError", told) and told.count("\n") == 1
    assert "Pass --input [NAME=]SHAPE[:DTYPE], as 2x3x224x224 or mask=2x7:bool" in told and "example_inputs" not in told


def test_code_that_names_a_cuda_device_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(tmp_path, "raise RuntimeError('found at least two devices, cuda:0 and cpu')", capsys)
    assert "its code names a CUDA device, and its weights are on cpu" in told and told.count("two devices") == 1


def takes_a_value() -> list[str]:
    """The options that a wrong value can be given to."""
    actions = build_parser()._actions
    return [action.option_strings[0] for action in actions if action.option_strings and action.nargs != 0]


def test_every_option_that_takes_a_value_has_a_wrong_one_in_the_table() -> None:
    flags = {"--balance-last", "--help", "--version"}
    flags.add("--exclude")  # every text is a pattern; one that names nothing is a warning
    given = {word for line, _ in BAD for word in line.split() if word.startswith("--")}
    assert set(takes_a_value()) - flags - given == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_can_complete_the_command(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and all(option.lstrip("-") in told for option in takes_a_value())


def test_completion_without_its_library_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "pip install 'fxenorm[completion]'" in told and told.count("\n") == 1


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_on_a_terminal_alone(
    model: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "70", "NO_COLOR": "", "FORCE_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([model, "--input", "2x4"]) == 0
    told = stream.getvalue()
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", told)) == coloured and "Groups: 1" in told
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told)
    widest = max(len(line.rstrip()) for line in plain.splitlines()[1:])  # the first holds the path, which is not broken
    assert 60 < widest <= (80 if variables.get("TERM") == "dumb" else 70)


def test_a_reader_who_has_gone_is_no_error(model: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fxenorm.inspect", model, "--input", "2x4", "--expand"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")

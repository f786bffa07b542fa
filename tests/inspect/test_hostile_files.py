"""``fxenorm-inspect`` on files that print, raise or end the process: one line, a true exit code, a clean answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxenorm.inspect.cli import main

NET = """
import atexit, os, signal, sys, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        {inside}
        return self.b(self.a(x).relu())

{before}
model = Net()
example_inputs = torch.randn(2, 4)
"""


def file(folder: Path, inside: str = "pass", before: str = "") -> str:
    path = folder / "model.py"
    path.write_text(NET.format(inside=inside, before=before))
    return str(path)


RAISES = (
    "sys.exit(0)",
    "sys.exit('bye')",
    "raise GeneratorExit",
    "raise BaseException('a\\nb')",
    "raise ValueError('a\\n\\x1b[31mb')",
)


@pytest.mark.parametrize("code", RAISES)
@pytest.mark.parametrize("place", ["inside", "before"])
def test_whatever_a_file_raises_is_one_line_and_exit_code_2(
    place: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([file(tmp_path, **{place: code}), "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("fxenorm-inspect: error: ") and told.err.count("\n") == 1 and told.err.rstrip("\n").isprintable()


def test_what_an_attribute_raises_when_the_model_is_looked_for_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([file(tmp_path, before="Net.parameters = lambda *_, **__: sys.exit(0)")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_names_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = r"""
class Net(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.add_module("a\x1b[31m\x07", nn.Linear(4, 8))
        self.add_module("r\u202e", nn.ReLU())
        self.add_module("b\n[red]", nn.Linear(8, 3))
Net.__name__ = "\x1b]0;title\x07"
"""
    path = file(tmp_path, before=before)
    assert main([path]) == 0
    told = capsys.readouterr().out
    assert all(line.isprintable() for line in told.split("\n"))
    assert r"a\x1b[31m\x07" in told and r"b\n[red]" in told
    assert main([path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["producer"] == "a\x1b[31m\x07"


def inspect(path: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); sys.argv[1:] = [{path!r}, '--json']"
    code = f"{start}\nfrom fxenorm.inspect.cli import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_the_answer_is_all_of_stdout_whatever_the_file_writes_there(tmp_path: Path) -> None:
    writes = "print(0); os.write(1, b'1\\n'); sys.__stdout__.write('2\\n'); os.system('echo 3')"
    ran = inspect(file(tmp_path, inside=writes, before=f"{writes}; atexit.register(lambda: print('at the end'))"))
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["totals"]["free_channels"] == 8
    assert "at the end" in ran.stderr and "3" in ran.stderr


@pytest.mark.parametrize(("end", "told"), [("os._exit(0)", "exit code 0"), ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV")])
def test_a_file_that_ends_the_process_is_an_error(end: str, told: str, tmp_path: Path) -> None:
    ran = inspect(file(tmp_path, inside=end))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert told in ran.stderr and ran.stderr.count("\n") == 1

"""The program behind tools/demo runs; what it prints is a measurement, which no test holds it to."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra demo brings it")

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "demo.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo with some arguments."""
    return subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=300)


def test_demo_prints_the_plan_and_all_arms() -> None:
    finished = run("--seeds", "2", "--epochs", "1")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    for words in ("1,400 scales", "converged", "as initialised", "rescaled at random", "test", "plan.step"):
        assert words in finished.stdout
    assert finished.stdout.count("0 of 2") == 4


@pytest.mark.parametrize("arguments", [("--seeds", "0"), ("--epochs", "none"), ("--rate", "-1")], ids=" ".join)
def test_demo_refuses_bad_arguments(
    arguments: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: it ends before anything is measured."""
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err

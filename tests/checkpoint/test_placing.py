"""Files take their places together: a process that is killed at any moment of it leaves old ones, none, or new ones."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fxenorm
from fxenorm.checkpoint.files.placing import finish_placing, place
from fxenorm.inspect.whole_files import WholeFiles, refuse_existing

CALLS = ("replace", "rename", "link", "unlink", "fsync", "rmdir")
"""The functions of the system that change what stands where, or wait for the disk."""


def killed_at(call: int, work: Callable[[], None]) -> bool:
    """Runs work in a process that is killed just before its k-th such call; returns whether it came so far."""
    child = os.fork()
    if child == 0:
        count = itertools.count()

        def watched(real: Callable[..., object]) -> Callable[..., object]:
            def function(*given: object, **named: object) -> object:
                if next(count) == call:
                    os._exit(9)
                return real(*given, **named)

            return function

        for name in CALLS:
            setattr(os, name, watched(getattr(os, name)))
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


OLD, NEW = {"a": "old", "b": "old", "other": "mine"}, {"a": "new", "b": "new", "other": "mine"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed between two renames, which needs fork")
def test_a_kill_at_any_moment_mixes_no_old_and_new_files(tmp_path: Path) -> None:
    for call in range(1000):
        shutil.rmtree(tmp_path)
        (tmp_path / "out").mkdir(parents=True)
        for name, text in OLD.items():
            (tmp_path / "out" / name).write_text(text)
        (tmp_path / "out.json").write_text("old")

        def work() -> None:
            with WholeFiles() as whole:
                whole.beside(tmp_path / "out.json").write_text("new")
                whole.folder(tmp_path / "out")
                for name in ("a", "b"):
                    whole.beside(tmp_path / "out" / name).write_text("new")

        reached = killed_at(call, work)
        if (tmp_path / "out").exists():
            assert contents(tmp_path / "out") in (OLD, NEW)
        finish_placing(tmp_path / "out")
        both = contents(tmp_path / "out"), (tmp_path / "out.json").read_text()
        assert both in ((OLD, "old"), (NEW, "new"))
        work()
        assert contents(tmp_path / "out") == NEW
        assert {path.name for path in tmp_path.iterdir()} == {"out", "out.json"}
        if not reached:
            assert call > 10  # there were so many moments
            return
    raise AssertionError("it never came to its end")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed between two renames, which needs fork")
def test_the_next_run_that_writes_there_goes_on_with_what_a_killed_one_left(tmp_path: Path) -> None:
    for call in range(1000):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        for name in ("a", "b"):
            (tmp_path / name).write_text("old")
            (tmp_path / f"{name}.made").write_text("new")
        reached = killed_at(call, lambda: place({tmp_path / name: tmp_path / f"{name}.made" for name in ("a", "b")}))
        refuse_existing([tmp_path / "a", tmp_path / "b"], force=True)
        assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
        if not reached:
            assert (tmp_path / "a").read_text() == "new"
            return
    raise AssertionError("it never came to its end")


def test_a_list_that_was_cut_off_is_of_renames_that_have_not_begun(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / ".a.being-placed").write_text('[["/somewhere')
    assert not finish_placing(tmp_path / "a")
    assert contents(tmp_path) == {"a": "old"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed between two renames, which needs fork")
@pytest.mark.parametrize(("name", "number"), [("rename", 0), ("replace", 0), ("replace", 1)])
def test_a_balanced_checkpoint_that_was_killed_in_its_last_renames_is_finished_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    for folder in ("source", "target"):
        (tmp_path / folder).mkdir()
    safetensors.save_file(model.state_dict(), tmp_path / "source" / "model.safetensors")
    (tmp_path / "target" / "model.safetensors").write_text("old")
    fxenorm.balance_checkpoint(tmp_path / "source", tmp_path / "whole", model)

    def work() -> None:
        fxenorm.balance_checkpoint(tmp_path / "source", tmp_path / "target", model, overwrite=True)

    monkeypatch.setattr(sys.modules[__name__], "CALLS", (name,))
    assert killed_at(number, work)
    if (tmp_path / "target").exists():
        assert {path.name for path in (tmp_path / "target").iterdir()} == {"model.safetensors"}
    result = fxenorm.balance_checkpoint(tmp_path / "source", tmp_path / "target", model)
    for one in ("model.safetensors",):
        assert (tmp_path / "target" / one).read_bytes() == (tmp_path / "whole" / one).read_bytes()
    kept = tmp_path / "target.log_scales.json"
    assert kept.read_text() == (tmp_path / "whole.log_scales.json").read_text() and result.norm_after < result.norm_before
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"source", "target", "whole", "target.log_scales.json", "whole.log_scales.json"}

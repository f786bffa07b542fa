"""The compiled kernels: which file is trusted, what happens without a compiler, and when a plan begins to use them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo  # older releases import it at the first trace, and some tests here break what an import needs
from torch import nn

import fxenorm
from fxenorm.errors import FxenormWarning, OptionError
from fxenorm.kernels import choice
from fxenorm.kernels.backend import get_backend
from fxenorm.kernels.cpu import build, compilers
from fxenorm.kernels.cpu.build import BuildError, Kernels

try:
    REAL = Path(build.library()._name)
except BuildError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache, and a process that has not asked for the kernels yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with own_kernels():
        yield


@contextlib.contextmanager
def own_kernels() -> Iterator[None]:
    """Within it the process asks anew; after it, it has what it had before."""
    before = build.kernels()
    build.kernels.cache_clear()
    try:
        yield
    finally:
        build.kernels().close()
        build.kernels.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "Kernels", lambda: before)
            build.kernels()


def compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, name: str = "fake-c++") -> Path:
    """A compiler, named by CXX, that runs a shell script; `copy` in it makes the library as the real one would."""
    copy = f'copy() {{ while [ "$1" != -o ]; do shift; done; cp "{REAL}" "$2"; }}'
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/runs"\n{copy}\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def no_other_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only CXX names one."""
    monkeypatch.setattr(compilers, "_NAMES", ())


def runs(folder: Path) -> list[str]:
    """The command lines that the compiler got."""
    path = folder / "runs"
    return path.read_text().splitlines() if path.exists() else []


def waited() -> Kernels:
    """The kernels of a process that has waited for them."""
    found = Kernels()
    found.wait()
    return found


def cache(tmp_path: Path) -> Path:
    """The folder of the cache."""
    return tmp_path / "cache" / "fxenorm"


def kept(tmp_path: Path) -> list[Path]:
    """The libraries in the cache."""
    return sorted(cache(tmp_path).glob("*.so"))


# --- trust and health ------------------------------------------------------------------------------------------------


def test_the_second_process_finds_what_the_first_has_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    assert waited().library is not None
    assert len(runs(tmp_path)) == 1
    again = Kernels()
    assert again.library is not None and Path(again.library._name) == kept(tmp_path)[0]
    assert len(runs(tmp_path)) == 1
    assert cache(tmp_path).stat().st_mode & 0o777 == 0o700
    assert not list(cache(tmp_path).glob("work-*"))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_folder_that_others_can_write_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    waited()
    cache(tmp_path).chmod(mode)
    found = waited()
    assert found.library is not None
    assert not Path(found.library._name).is_relative_to(cache(tmp_path))
    assert not Path(found.library._name).parent.exists()  # the private folder is gone: a loaded library needs it no more
    assert len(runs(tmp_path)) == 2
    assert str(cache(tmp_path)) in found.note


@pytest.mark.parametrize("which", ["library", "checksum"])
def test_a_file_that_others_can_write_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    waited()
    library = kept(tmp_path)[0]
    (library if which == "library" else Path(f"{library}.sha256")).chmod(0o722)
    assert waited().library is not None
    assert len(runs(tmp_path)) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("of_folder", [True, False])
def test_what_belongs_to_another_user_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, of_folder: bool) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    waited()
    os.chown(cache(tmp_path) if of_folder else kept(tmp_path)[0], 12345, -1)
    assert waited().library is not None
    assert len(runs(tmp_path)) == 2


def test_a_link_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    waited()
    library = kept(tmp_path)[0]
    elsewhere = tmp_path / "elsewhere.so"
    shutil.move(library, elsewhere)
    library.symlink_to(elsewhere)
    assert waited().library is not None
    assert len(runs(tmp_path)) == 2 and not library.is_symlink()


DAMAGES = {
    "truncated": lambda library: os.truncate(library, 5000),
    "empty": lambda library: os.truncate(library, 0),
    "one byte": lambda library: library.write_bytes(library.read_bytes()[:-1] + b"\xff\x00"),
    "without a checksum": lambda library: Path(f"{library}.sha256").unlink(),
    "with another checksum": lambda library: Path(f"{library}.sha256").write_text("5 \xe9", encoding="latin-1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    waited()
    library = kept(tmp_path)[0]
    # A new file: the old one is mapped into this process, which a change would kill.
    content = library.read_bytes()
    library.unlink()
    library.write_bytes(content)
    library.chmod(0o700)
    DAMAGES[damage](library)
    assert waited().library is not None
    assert len(runs(tmp_path)) == 2
    assert Kernels().library is not None and len(runs(tmp_path)) == 2


def test_a_whole_library_that_does_not_load_is_made_anew_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = compiler(monkeypatch, tmp_path, 'while [ "$1" != -o ]; do shift; done; echo no library > "$2"')
    no_other_compiler(monkeypatch)
    assert "does not load" in waited().failure
    assert path.exists()


def test_a_cache_that_cannot_be_written_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    waited()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    found = Kernels()
    assert found.library is not None and Path(found.library._name) == kept(tmp_path)[0]
    assert found.note == "" and len(runs(tmp_path)) == 1


def test_what_killed_processes_left_is_cleaned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    cache(tmp_path).mkdir(parents=True, mode=0o700)
    old, young = cache(tmp_path) / "work-old", cache(tmp_path) / "work-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "half.so").write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    waited()
    assert not old.exists() and young.exists()


# --- variants --------------------------------------------------------------------------------------------------------


def test_a_lesser_variant_does_not_stay_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Today there is no OpenMP; on another day it is installed, and the compiler is the same."""
    script = f'case "$*" in *-fopenmp*) [ -e "{tmp_path}/openmp" ] || {{ echo no omp.h >&2; exit 1; }};; esac; copy "$@"'
    compiler(monkeypatch, tmp_path, script)
    assert waited().library is not None
    assert len(runs(tmp_path)) == 3 and "-fopenmp" not in runs(tmp_path)[-1]
    assert Kernels().library is not None and len(runs(tmp_path)) == 3  # failures of today are not repeated
    (tmp_path / "openmp").touch()
    for marker in cache(tmp_path).glob("*.failed"):
        os.utime(marker, (time.time() - 2 * 24 * 3600,) * 2)
    assert waited().library is not None
    assert len(runs(tmp_path)) == 4 and "-fopenmp" in runs(tmp_path)[-1]
    assert len(kept(tmp_path)) == 2


# --- compilers -------------------------------------------------------------------------------------------------------


def test_cxx_may_carry_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = compiler(monkeypatch, tmp_path, 'copy "$@"')
    monkeypatch.setenv("CXX", f"{path} --driver 'a b'")
    assert waited().library is not None
    assert runs(tmp_path)[0].startswith("--driver a b -std")


@pytest.mark.parametrize("named", ["/nowhere/c++ -x", "'an open quote", "fails"])
def test_a_bad_cxx_falls_to_the_next_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str) -> None:
    good = compiler(monkeypatch, tmp_path, 'copy "$@"', "good-c++")
    monkeypatch.setattr(compilers, "_NAMES", (str(good),))
    if named == "fails":
        named = str(compiler(monkeypatch, tmp_path, "exit 1", "bad-c++"))
    monkeypatch.setenv("CXX", named)
    assert waited().library is not None


FAILURES = {
    "fails": ("echo no such language >&2; exit 1", "no such language"),
    "says nothing": ("exit 3", "exit status 3"),
    "makes nothing": ("exit 0", "exit status 0"),
    "speaks another encoding": (r"printf 'erreur : \351chec\n' >&2; exit 1", "erreur : .chec"),
    "talks much": ("yes complaint | head -c 1000000 >&2; exit 1", "complaint"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_the_reason_of_a_failing_compiler_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    script, reason = FAILURES[kind]
    compiler(monkeypatch, tmp_path, script)
    no_other_compiler(monkeypatch)
    with pytest.raises(BuildError, match=reason):
        build.library()
    assert not kept(tmp_path)


def test_a_compiler_that_hangs_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    compiler(monkeypatch, tmp_path, f'(sleep 3; touch "{ended}") &\nwait')
    no_other_compiler(monkeypatch)
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.1)
    with pytest.raises(BuildError, match=r"took more than 0\.1 s"):
        build.library()
    assert not kept(tmp_path) and not list(cache(tmp_path).glob("*.failed"))  # a busy machine is no lasting reason
    time.sleep(0.2)
    assert subprocess.run(["pgrep", "-f", str(ended)], capture_output=True, check=False).stdout == b""


def test_a_file_that_is_no_program_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "c++"
    path.write_bytes(b"\x00\x01")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    no_other_compiler(monkeypatch)
    with pytest.raises(BuildError, match="cannot be run"):
        build.library()


@pytest.mark.parametrize(
    ("platform", "tools", "expected"),
    [("darwin", False, "command line tools"), ("darwin", True, ""), ("win32", True, "Windows"), ("linux", False, "")],
)
def test_other_platforms_as_far_as_they_can_be_simulated(
    monkeypatch: pytest.MonkeyPatch, platform: str, tools: bool, expected: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(compilers, "_has_command_line_tools", lambda: tools)
    found, complaints = compilers.find_compilers()
    assert bool(found) == (not expected)
    assert expected in " ".join(complaints)


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_a_home_nothing_appears_in_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/cache")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    assert waited().library is not None
    assert list((tmp_path / "here").iterdir()) == []


def test_a_home_that_cannot_be_made_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert waited().library is not None


def test_missing_sources_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_FOLDER", tmp_path / "native")
    assert "sources of the kernels are missing" in waited().failure


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_a_machine_without_room_for_files_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: int) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')

    def full(**arguments: object) -> str:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    assert os.strerror(reason) in waited().failure
    plan = fxenorm.analyze(small(), torch.randn(2, 4))
    with pytest.warns(FxenormWarning, match=os.strerror(reason)):
        plan.step()


# --- plans -----------------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    """A network with 8 scales."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def executor_of(plan: fxenorm.Plan) -> str:
    """The name of the executor that the plan uses now."""
    return str(plan.rescaler.analysis.backend.name)


def test_without_a_compiler_one_warning_stands_at_the_users_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "nothing-of-that-name")
    no_other_compiler(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plans = [fxenorm.analyze(small(), torch.randn(2, 4)) for _ in range(2)]
    with pytest.warns(FxenormWarning, match="CXX='nothing-of-that-name' is no program") as given:
        for plan in plans:
            plan.step()
            plan.balance()
    assert len(given) == 1 and given[0].filename == __file__
    assert [executor_of(plan) for plan in plans] == ["eager", "eager"]
    with pytest.raises(OptionError, match="backend='compiled' does not work here: CXX='nothing-of-that-name'"):
        get_backend("compiled")


def test_a_cache_that_is_not_trusted_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    cache(tmp_path).mkdir(parents=True)
    cache(tmp_path).chmod(0o777)
    plan = fxenorm.analyze(small(), torch.randn(2, 4))
    build.kernels().wait()
    with pytest.warns(FxenormWarning, match="can be written by other users") as given:
        plan.step()
        plan.step()
    assert len(given) == 1 and executor_of(plan) == "compiled"


def test_steps_run_before_the_compiler_has_finished_and_switch_when_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(monkeypatch, tmp_path, f'while [ ! -e "{tmp_path}/go" ]; do sleep 0.02; done; copy "$@"')
    model = small()
    plan = fxenorm.analyze(model, torch.randn(2, 4))
    other = small()
    other.load_state_dict(model.state_dict())
    eager = fxenorm.analyze(other, torch.randn(2, 4), backend="eager")
    for _ in range(3):
        plan.step()
        eager.step()
    assert executor_of(plan) == "eager" and not build.kernels().is_decided
    (tmp_path / "go").touch()
    assert build.kernels().wait(60)
    assert executor_of(plan) == "compiled"
    for _ in range(3):
        plan.step()
        eager.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", ["deterministic", "compiled", "late step"])
def test_some_wait_for_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str) -> None:
    compiler(monkeypatch, tmp_path, 'sleep 0.3; copy "$@"')
    monkeypatch.setattr(choice, "_LATEST_STEP", 5)
    plan = fxenorm.analyze(small(), torch.randn(2, 4), backend="compiled" if way == "compiled" else "auto")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(way == "deterministic")
    try:
        for _ in range(5 if way == "late step" else 1):
            plan.step()
        assert executor_of(plan) == "compiled"
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_failure_is_remembered_by_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, "exit 1")
    no_other_compiler(monkeypatch)
    build.kernels().wait()
    count = len(runs(tmp_path))
    with pytest.warns(FxenormWarning):
        fxenorm.analyze(small(), torch.randn(2, 4)).step()
    fxenorm.analyze(small(), torch.randn(2, 4)).step()
    assert len(runs(tmp_path)) == count


# --- processes -------------------------------------------------------------------------------------------------------

TWO_AT_ONCE = "from fxenorm.kernels.cpu.build import library; print(library()._name)"

LEAVES_EARLY = "from fxenorm.kernels.cpu.build import kernels; assert not kernels().is_decided"

FORKS = """
import os, sys, time
from fxenorm.kernels.cpu.build import kernels
assert not kernels().is_decided
child = os.fork()
if child == 0:
    kernels()
    sys.exit(0)  # with all that runs at exit
assert os.waitpid(child, 0)[1] == 0
open(sys.argv[1], "w").close()
assert kernels().wait(60) and kernels().library is not None, kernels().failure
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """Its output, once it has ended well."""
    output, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    return output


def test_of_two_processes_one_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'sleep 5; copy "$@"')
    names = {finished(process) for process in [python(TWO_AT_ONCE), python(TWO_AT_ONCE)]}
    assert len(names) == 1 and len(runs(tmp_path)) == 1


def test_a_process_that_ends_early_ends_its_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, f'sleep 3; touch "{tmp_path}/ended"; copy "$@"')
    finished(python(LEAVES_EARLY))
    assert not list(cache(tmp_path).glob("work-*")) and not (tmp_path / "ended").exists()


def test_a_forked_child_leaves_the_compiler_of_its_parent_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, f'while [ ! -e "{tmp_path}/go" ]; do sleep 0.02; done; copy "$@"')
    finished(python(FORKS, str(tmp_path / "go")))


def test_a_command_compiles_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path, 'copy "$@"')
    command = [sys.executable, "-m", "fxenorm.kernels"]
    ready = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert str(kept(tmp_path)[0]) in ready.stdout
    monkeypatch.setenv("CXX", "nothing-of-that-name")
    failed = subprocess.run([*command], capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "PATH": ""})
    assert failed.returncode == 1 and "nothing-of-that-name" in failed.stderr

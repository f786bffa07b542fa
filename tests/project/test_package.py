"""What a user gets from ``pip install``: an import that works from any folder and is light, a command, type information."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxenorm

ROOT = Path(__file__).resolve().parents[2]
NOT_AT_IMPORT = ("networkx", "scipy", "rich", "torchvision", "sklearn", "matplotlib", "bokeh", "pandas", "transformers")


def run(*command: str | Path, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in another folder, with no import path but the given one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def succeed(*command: str | Path, folder: Path, path: Path | None = None) -> str:
    """Run a command that has to succeed; its standard output."""
    finished = run(*command, folder=folder, path=path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sources."""
    pytest.importorskip("hatchling", reason="building needs hatchling, which the extra dev brings")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    succeed(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, folder=folder)
    (built,) = folder.glob("fxenorm-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, with nothing of the repository beside it."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    succeed(*pip, "--no-deps", "--no-index", "--target", folder, wheel, folder=folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder that has nothing to do with the repository."""
    assert ROOT not in tmp_path.parents
    yield tmp_path


@pytest.mark.package
def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if name.startswith("fxenorm/")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fxenorm").rglob("*.py")}
    kernels = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fxenorm" / "kernels" / "cpu" / "native").iterdir()}
    page = {f"fxenorm/inspect/html/page.{ending}" for ending in ("html", "css", "js")}
    others = {"fxenorm/py.typed", "fxenorm/inspect/answer.schema.json"} | page
    assert kernels and shipped == sources | kernels | others
    assert wheel.stat().st_size < 1 << 20
    assert {name.split("/")[0] for name in names} == {"fxenorm", f"fxenorm-{fxenorm.__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.package
def test_the_metadata_agree_with_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_string(archive.read(name).decode())
    assert metadata["Version"] == fxenorm.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    needed = {re.split(r"[^\w-]", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == {"torch", "networkx", "numpy", "scipy", "rich"}


def test_every_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "fxenorm").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.package
def test_an_installed_copy_works_from_another_folder(installed: Path, elsewhere: Path) -> None:
    program = (
        "import fxenorm, torch; from torch import nn\n"
        "plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))\n"
        "plan.step(); print(fxenorm.__file__, fxenorm.__version__, plan.num_scales)"
    )
    file, version, scales = succeed(sys.executable, "-c", program, folder=elsewhere, path=installed).split()
    assert Path(file).parent.parent.samefile(installed)
    assert version == fxenorm.__version__
    assert scales == "5"


@pytest.mark.package
def test_the_command_is_installed(installed: Path, elsewhere: Path) -> None:
    scripts = [path for path in (installed / "bin").iterdir() if path.stem == "fxenorm-inspect"]
    assert len(scripts) == 1
    help_text = succeed(sys.executable, scripts[0], "--help", folder=elsewhere, path=installed)
    assert "fxenorm-inspect" in help_text
    assert "--json" in help_text


def test_importing_loads_nothing_heavy_beyond_torch(elsewhere: Path) -> None:
    listing = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    with_torch = set(succeed(sys.executable, "-c", f"import torch; {listing}", folder=elsewhere, path=ROOT).split())
    program = f"import fxenorm; fxenorm.analyze, fxenorm.Plan; {listing}"
    with_fxenorm = set(succeed(sys.executable, "-c", program, folder=elsewhere, path=ROOT).split())
    assert set(NOT_AT_IMPORT) & (with_fxenorm - with_torch) == set()


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), ([], 2), (["--no-such-option"], 2), (["no_such_file.py"], 2)], ids=str
)
def test_the_command_answers_without_torch(arguments: list[str], code: int, elsewhere: Path) -> None:
    program = (
        "import sys\n"
        "from fxenorm.inspect.cli import main\n"
        f"sys.argv = ['fxenorm-inspect', *{arguments!r}]\n"
        "try:\n"
        "    status = main()\n"
        "except SystemExit as stop:\n"
        "    status = stop.code\n"
        "print('torch' in sys.modules, status or 0)"
    )
    finished = run(sys.executable, "-c", program, folder=elsewhere, path=ROOT)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split()[-2:] == ["False", str(code)]
    assert "Traceback" not in finished.stderr


def test_help_waits_for_the_parser_alone(elsewhere: Path) -> None:
    program = (
        "import sys, argparse\n"
        "before = set(sys.modules)\n"
        "from fxenorm.inspect.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    print(*sorted(set(sys.modules) - before))"
    )
    loaded = succeed(sys.executable, "-c", program, folder=elsewhere, path=ROOT).splitlines()[-1].split()
    assert "fxenorm.inspect.cli" in loaded
    assert not {"dataclasses", "inspect", "json", "pathlib", "traceback"} & set(loaded)


@pytest.mark.parametrize("what", ["import fxenorm; fxenorm.analyze", "from fxenorm import Plan", "inspect"])
def test_without_torch_one_line_says_what_to_install(what: str, elsewhere: Path) -> None:
    missing = "import sys; sys.modules['torch'] = None\n"  # as Python marks a module that cannot be imported
    if what == "inspect":
        (elsewhere / "model.py").write_text("model = 1\n")
        what = "from fxenorm.inspect.cli import main; sys.exit(main(['model.py']))"
    finished = run(sys.executable, "-c", missing + what, folder=elsewhere, path=ROOT)
    last = finished.stderr.strip().splitlines()[-1]
    assert finished.returncode != 0 and "pip install torch" in last
    if "main" in what:
        assert finished.returncode == 2 and finished.stderr.count("\n") == 1


def test_the_version_stands_in_one_place() -> None:
    files = [path for path in (*(ROOT / "fxenorm").rglob("*.py"), ROOT / "pyproject.toml")]
    found = [path.name for path in files if f'"{fxenorm.__version__}"' in path.read_text(encoding="utf-8")]
    assert found == ["version.py"]


USES_THE_LIBRARY = """
import torch
import fxenorm

plan: fxenorm.Plan = fxenorm.analyze(torch.nn.Linear(2, 2), p=2.0)
count: int = plan.num_scales
plan.step()
result: fxenorm.BalanceResult = plan.balance()
fxenorm.analyze(torch.nn.Linear(2, 2), batchnorm="nonsense")  # an error that the checker has to see
"""


@pytest.mark.package
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_type_checkers_see_the_types_of_an_installed_copy(checker: str, installed: Path, elsewhere: Path) -> None:
    command = Path(sys.executable).with_name(checker)
    if not command.exists():
        pytest.skip(f"{checker} is not installed")
    (elsewhere / "uses.py").write_text(USES_THE_LIBRARY)
    options = ["--strict"] if checker == "mypy" else ["--pythonpath", sys.executable, "--level", "error"]
    finished = run(command, *options, "uses.py", folder=elsewhere, path=installed)
    complaints = [line for line in finished.stdout.splitlines() if "error" in line and "uses.py" in line]
    assert len(complaints) == 1 and "nonsense" in finished.stdout, finished.stdout + finished.stderr


def test_public_names_resolve_and_others_do_not() -> None:
    for name in fxenorm.__all__:
        assert getattr(fxenorm, name) is not None
        assert name in dir(fxenorm)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fxenorm.nonsense

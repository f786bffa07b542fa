"""backend="triton": its kernels under Triton's interpreter, compiled for a GPU that is not there, and on one that is."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fxenorm
from fxenorm.errors import FxenormWarning, OptionError
from fxenorm.kernels.gpu.executor import TritonBackend

from ..triton_models import Launches, assert_same, trained

ROOT = Path(__file__).resolve().parents[2]


def in_a_process(*arguments: str, interpreted: bool) -> str:
    """What Python prints. Triton reads its environment once, when it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON_INTERPRET", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_kernels_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    assert " passed" in in_a_process("-m", "pytest", *options, "tests/triton_cases.py", interpreted=True)


def test_kernels_compile_for_a_gpu() -> None:
    """Types and names that the interpreter lets pass."""
    pytest.importorskip("triton")
    printed = in_a_process("-m", "tests.triton_compiles", interpreted=False)
    kernels = {"combine", "fill_factors", "find_rooms", "reduce_tiles", "scale_tiles", "settle"}
    assert set(printed.split()) == kernels


def test_on_a_cpu_it_is_the_eager_executor_and_says_so_once() -> None:
    pytest.importorskip("triton")
    ours, theirs = trained("triton"), trained("eager")
    with pytest.warns(FxenormWarning, match="rescaled in plain PyTorch"):
        ours[2].step(ours[1])
    theirs[2].step(theirs[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, optimizer, plan in (ours, theirs):
            plan.step(optimizer, cycles=2)
    assert_same(ours, theirs)


def test_without_triton_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(OptionError, match=r"pip install triton.*backend='auto'"):
        TritonBackend()
    with pytest.raises(OptionError, match="backend='triton' needs Triton"):
        fxenorm.analyze(torch.nn.Linear(2, 2), torch.randn(2, 2), backend="triton")


def test_other_backends_do_not_import_the_kernels() -> None:
    program = (
        "import sys, torch, fxenorm; plan = fxenorm.analyze(torch.nn.Linear(2, 2), torch.ones(2, 2)); plan.step();"
        "print('fxenorm.kernels.gpu.kernels' in sys.modules)"
    )
    assert "False" in in_a_process("-c", program, interpreted=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("options", [{}, {"p": 1.0}, {"p": 2.5}, {"dtype": torch.bfloat16, "scales": "exact"}], ids=str)
def test_on_a_gpu(options: dict[str, object], cycles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager executor's weights, few launches, and no waiting."""
    found = [trained(backend, device="cuda", **options) for backend in ("triton", "eager")]  # type: ignore[arg-type]
    for _, optimizer, plan in found:
        plan.step(optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with Launches(monkeypatch) as launches:
            found[0][2].step(found[0][1], cycles=cycles)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found[1][2].step(found[1][1], cycles=cycles)
    assert len(launches.names) == 6 + 4 * (cycles - 1) and not launches.operators
    assert_same(*found)

"""Run tests in a fork of a process that has torch imported already: the import of torch is paid once, not once a mutant."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

# What fxenorm and its tests import, and is slow to import. Nothing of fxenorm: each fork imports its own.
_SLOW_TO_IMPORT = [
    "numpy",
    "torch",
    "scipy.optimize",
    "scipy.sparse.linalg",
    "scipy.sparse.csgraph",
    "networkx",
    "rich.table",
    "hypothesis",
    "torch._dynamo",
    "torch.export",
    "torch.fx.experimental.proxy_tensor",
    "torch._functorch.aot_autograd",
]
_KILLED_WITH_THE_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


def import_slow_modules() -> None:
    """Import in this process what every fork would have to import."""
    for name in _SLOW_TO_IMPORT:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # the forks share this memory with each other
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)).run_decompositions({})


def _become_a_test_run(folder: Path, log: Path, limit: float) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_KILLED_WITH_THE_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    sys.path[:0] = [str(folder)]
    os.environ["PYTHONPATH"] = str(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def in_a_fork(work: Callable[[], int], folder: Path, log: Path, limit: float) -> int | None:
    """Call `work` in a fork whose current folder is `folder` and whose output goes to `log`.

    Returns its exit status; None if it took longer than `limit` seconds of the processor, or waited for six times as long.
    No process of the fork's group is left.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            _become_a_test_run(folder, log, limit)
            status = int(work())
            sys.stdout.flush()
        finally:
            os._exit(status)
    end = time.monotonic() + 6.0 * limit
    try:
        pause = 0.01
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                child = 0
                code = os.waitstatus_to_exitcode(status)
                return None if code == -signal.SIGXCPU else code
            time.sleep(pause)
            pause = min(0.2, 1.5 * pause)
        return None
    finally:
        group = child or ended
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        if child:
            os.waitpid(child, 0)

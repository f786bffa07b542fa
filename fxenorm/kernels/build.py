"""Compiles the CPU kernels with the system's compiler, once a machine, into a cache on disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

__all__ = ["COMPILE_SECONDS", "BuildError", "library"]

COMPILE_SECONDS = 20
"""The longest that a first step waits for the compiler; it needs 4 seconds on an idle core."""

_FOLDER = Path(__file__).with_name("native")
_SOURCE = _FOLDER / "channel_kernels.cpp"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++14", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_VARIANTS = (("-march=native", "-mprefer-vector-width=512", "-fopenmp"), ("-march=native", "-fopenmp"), ("-march=native",), ())
"""From the fastest down: Apple's compiler knows no OpenMP, and some targets no -march=native."""


class BuildError(Exception):
    """There is no compiler that works, or it took too long; the message says which."""


@cache
def library() -> ctypes.CDLL:
    """The kernels, compiled now where the cache does not hold them.

    Raises:
        BuildError: no compiler, none that compiles the source, or not within `COMPILE_SECONDS`.
    """
    # The kernels must use the OpenMP threads of torch: its runtime is in memory by now, and the loader takes that one.
    import torch  # noqa: F401

    compiler = next((found for name in (os.environ.get("CXX", ""), *_COMPILERS) if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise BuildError(f"there is no C++ compiler ({', '.join(_COMPILERS)}) on the path")
    path = _cache_folder() / f"channel_kernels-{_key(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        return _declared(ctypes.CDLL(str(path)))
    except OSError as error:
        raise BuildError(f"{path} does not load: {error}") from error


def _cache_folder() -> Path:
    """Where compiled kernels are kept: below XDG_CACHE_HOME or the user's home, else in a folder of this process alone."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "fxenorm"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK) and (not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()):
            return folder
    except OSError:
        pass  # a home that cannot be written: compiled anew by every process
    return _private_folder()


@cache
def _private_folder() -> Path:
    """A new folder that no other user can write to."""
    return Path(tempfile.mkdtemp(prefix="fxenorm-"))


def _key(compiler: str) -> str:
    """Hash of the source, the compiler and the processor: what the result depends on."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_FOLDER.iterdir())))
    stamp = os.stat(compiler)
    facts = (os.path.realpath(compiler), stamp.st_size, stamp.st_mtime_ns, _FLAGS, _VARIANTS, sys.platform, _processor())
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """The processor with its instruction sets: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def _compile(compiler: str, path: Path) -> None:
    """Compiles to a file of its own and moves it into place, so that no process ever loads half a file."""
    handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    end, complaint = time.monotonic() + COMPILE_SECONDS, ""
    try:
        for variant in _VARIANTS:
            code, complaint = _run([compiler, *_FLAGS, *variant, "-o", made, str(_SOURCE)], end - time.monotonic())
            if code == 0:
                os.replace(made, path)
                return
        raise BuildError(f"{compiler} cannot compile the kernels: {complaint.strip()[-300:]}")
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{compiler} took more than {COMPILE_SECONDS} s") from error
    except OSError as error:
        raise BuildError(f"{compiler} cannot be run: {error}") from error
    finally:
        Path(made).unlink(missing_ok=True)


def _run(command: list[str], seconds: float) -> tuple[int, str]:
    """The exit status and the complaints of a command; what it started ends with it when the time is over."""
    own_group = hasattr(os, "killpg")
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=own_group
    ) as process:
        try:
            _, complaint = process.communicate(timeout=max(0.0, seconds))
        except BaseException:
            if own_group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            raise
        return process.returncode, complaint


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions' arguments; pointers are passed as integers."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    found.fxenorm_reduce.argtypes = [
        *(pointer, integer, pointer, integer, pointer, integer),
        *(pointer, pointer, integer, ctypes.c_double, ctypes.c_int),
    ]
    found.fxenorm_reduce.restype = None
    found.fxenorm_scale.argtypes = [
        *(pointer, pointer, integer, pointer, integer),
        *(pointer, integer, pointer, pointer, pointer, ctypes.c_int),
    ]
    found.fxenorm_scale.restype = ctypes.c_int
    for one_call in (found.fxenorm_step, found.fxenorm_cycles):
        one_call.argtypes, one_call.restype = [pointer], ctypes.c_int
    return found

"""Compiles the CPU kernels with the system's compiler, once a machine, beside the work of the process that asks for them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from functools import cache
from pathlib import Path

from .cache import Cache, open_cache
from .compilers import find_compilers
from .structures import differences

__all__ = ["COMPILE_SECONDS", "BuildError", "Kernels", "kernels", "library"]

COMPILE_SECONDS = 300.0
"""The longest that one attempt may take: it needs 7 seconds of processor time, and took 74 on a busy machine."""

_FOLDER = Path(__file__).with_name("native")
_SOURCE = "channel_kernels.cpp"
_FLAGS = ("-std=c++14", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_VARIANTS = (("-march=native", "-mprefer-vector-width=512", "-fopenmp"), ("-march=native", "-fopenmp"), ("-march=native",), ())
"""From the fastest down: Apple's compiler knows no OpenMP, and some targets no -march=native."""

_POLL_SECONDS = 0.01
"""How often a caller that waits looks at the compiler: far less than a compilation takes."""


class BuildError(Exception):
    """The kernels cannot be had; the message says why."""


class Kernels:
    """The kernels of this process: in memory, on their way, or out of reach.

    The compiler is a process beside this one. Nothing here runs in a thread; `poll` looks how far it is.

    Attributes:
        library: the loaded kernels; None while they are not there.
        failure: why they cannot be had; "" while that is not known.
        note: what the user should know about the cache; "" if nothing.
        warned: whether the user was told of `failure` or `note`.
    """

    def __init__(self) -> None:
        self.library: ctypes.CDLL | None = None
        self.failure = ""
        self.note = ""
        self.warned = False
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._attempts = self._attempt()
        self.poll()

    @property
    def is_decided(self) -> bool:
        """Whether the kernels are there, or known to be out of reach."""
        return self.library is not None or bool(self.failure)

    def poll(self) -> bool:
        """Goes on as far as is possible without waiting; returns whether it `is_decided`."""
        if self.is_decided or not self._lock.acquire(blocking=False):  # another thread is at it
            return self.is_decided
        try:
            next(self._attempts)
        except StopIteration as finished:
            self.library = finished.value
        except (BuildError, OSError) as error:
            self.failure = str(error) or type(error).__name__
        finally:
            self._lock.release()
        return self.is_decided

    def wait(self, seconds: float = float("inf")) -> bool:
        """Polls until it `is_decided`, at most for so many seconds; returns whether it is."""
        end = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def close(self) -> None:
        """Ends a compiler that is still at work, and removes what it made."""
        if os.getpid() == self._process:
            self._attempts.close()

    def _attempt(self) -> Generator[None, None, ctypes.CDLL]:
        """Yields while a compiler is at work; returns the loaded kernels.

        Raises:
            BuildError: nothing helped.
            OSError: no folder can be written.
        """
        # The kernels must use the OpenMP threads of torch: its runtime is in memory by now, and the loader takes that one.
        import torch  # noqa: F401

        compilers, complaints = find_compilers()
        if not (_FOLDER / _SOURCE).is_file():
            raise BuildError(f"the sources of the kernels are missing from {_FOLDER}: install fxenorm again")
        if not compilers:
            raise BuildError("; ".join(complaints))
        store = open_cache()
        try:
            store.clean()
            self.note = store.note
            for compiler in compilers:
                found = yield from _from_compiler(compiler, store, complaints)
                if found is not None:
                    return found
            raise BuildError("; ".join(complaints))
        finally:
            store.close()


@cache
def kernels() -> Kernels:
    """Returns the kernels of this process; asks for them now if nobody did before."""
    found = Kernels()
    atexit.register(found.close)
    return found


def library() -> ctypes.CDLL:
    """Waits for the kernels.

    Raises:
        BuildError: they cannot be had; why.
    """
    found = kernels()
    found.wait()
    if found.library is None:
        raise BuildError(found.failure)
    return found.library


def _restart_in_child() -> None:
    """Forgets, after a fork, a compiler at work: it belongs to the parent, and the child asks anew when it needs the kernels."""
    if kernels.cache_info().currsize and not kernels().is_decided:
        _OF_PARENT.append(kernels())
        kernels.cache_clear()


_OF_PARENT: list[Kernels] = []
"""Keeps the parent's unfinished attempt from being closed in the child, which would remove the parent's files."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_in_child)


def _from_compiler(compiler: tuple[str, ...], store: Cache, complaints: list[str]) -> Generator[None, None, ctypes.CDLL | None]:
    """Tries the variants of one compiler; returns the loaded kernels, or None with one more complaint."""
    complaint = ""
    for variant in _VARIANTS:
        name = f"channel_kernels-{_key(compiler, variant)}.so"
        for _ in range(2):  # a file that is whole and does not load is made anew, once
            path = store.find(name)
            fresh = path is None
            if path is None:
                path, complaint = yield from _made(compiler, variant, store, name)
            if path is None:
                break
            try:
                return _declared(ctypes.CDLL(str(path)))
            except (OSError, AttributeError) as error:
                complaint = f"{path} does not load: {error}"
                if fresh:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
    complaints.append(f"{' '.join(compiler)}: {complaint}")
    return None


def _made(
    compiler: tuple[str, ...], variant: tuple[str, ...], store: Cache, name: str
) -> Generator[None, None, tuple[Path | None, str]]:
    """Makes one file, or lets another process that is at it finish; returns the file, or None and the complaint."""
    end = time.monotonic() + COMPILE_SECONDS
    while True:
        with store.claim(name) as mine:
            found, known = store.find(name), store.failure(name)
            if found is not None or known is not None:
                return found, known or ""
            if mine or time.monotonic() > end:
                return (yield from _compiled(compiler, variant, store, name))
        yield


def _compiled(
    compiler: tuple[str, ...], variant: tuple[str, ...], store: Cache, name: str
) -> Generator[None, None, tuple[Path | None, str]]:
    """Runs the compiler once; returns the kept file, or None and the complaint."""
    with store.work_folder() as folder:
        made = folder / name
        command = [*compiler, *_FLAGS, *variant, "-o", str(made), str(_FOLDER / _SOURCE)]
        code, complaint = yield from _run(command, folder)
        if code == 0 and made.is_file():
            return store.keep(made, name), ""
    complaint = complaint.strip()[-300:] or f"it ended with exit status {code} and without a word"
    if code is not None:
        store.remember_failure(name, complaint)
    return None, complaint


def _run(command: list[str], folder: Path) -> Generator[None, None, tuple[int | None, str]]:
    """Runs a command; returns its exit status, None where there is none, and its complaints.

    What it started ends with it when the time is over, or when this process ends.
    """
    mine, end = os.getpid(), time.monotonic() + COMPILE_SECONDS
    log = folder / "complaints"
    try:
        with log.open("wb") as complaints:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(folder)},
            )
    except OSError as error:
        return None, f"it cannot be run: {error}"
    try:
        while process.poll() is None:
            if time.monotonic() > end:
                return None, f"it took more than {COMPILE_SECONDS:g} s"
            yield
    finally:
        if os.getpid() == mine and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def _key(compiler: tuple[str, ...], variant: tuple[str, ...]) -> str:
    """Returns a hash of all that the result depends on: sources, compiler, flags, variant and processor."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.is_file()))
    stamp = os.stat(compiler[0])
    facts = (os.path.realpath(compiler[0]), compiler[1:], stamp.st_size, stamp.st_mtime_ns, _FLAGS, variant)
    digest.update(repr((*facts, sys.platform, _processor())).encode())
    return digest.hexdigest()[:24]


@cache
def _processor() -> str:
    """Returns the processor with its instruction sets: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """Returns the library with the types of its functions' arguments; pointers are passed as integers.

    Raises:
        BuildError: its structures are not those that Python fills.
    """
    unlike = differences(found)
    if unlike:
        raise BuildError(f"the structures of the kernels are not those of this fxenorm: {'; '.join(unlike)}; install it again")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    found.fxenorm_reduce.argtypes = [
        *(pointer, integer, pointer, integer, pointer, integer),
        *(pointer, pointer, integer, ctypes.c_double, ctypes.c_int),
    ]
    found.fxenorm_reduce.restype = ctypes.c_int
    found.fxenorm_scale.argtypes = [
        *(pointer, pointer, integer, pointer, integer),
        *(pointer, integer, pointer, ctypes.c_int, pointer, ctypes.c_int),
    ]
    found.fxenorm_scale.restype = ctypes.c_int
    found.fxenorm_products.argtypes = [*(pointer, integer, pointer, integer, ctypes.c_double), *[pointer] * 3, ctypes.c_int]
    found.fxenorm_ends.argtypes = [pointer, integer, integer, pointer, ctypes.c_int]
    found.fxenorm_products.restype = found.fxenorm_ends.restype = None
    found.fxenorm_zeros.argtypes, found.fxenorm_zeros.restype = [pointer, integer, integer, ctypes.c_int], ctypes.c_int
    found.fxenorm_above.argtypes = [pointer, pointer, integer, *[pointer] * 7, ctypes.c_int]
    found.fxenorm_largest.argtypes = [pointer, integer, pointer, integer, *[pointer] * 5, ctypes.c_int]
    found.fxenorm_above.restype = found.fxenorm_largest.restype = integer
    found.fxenorm_contract.argtypes = [integer, integer, *[pointer] * 6]
    found.fxenorm_contract.restype = ctypes.c_int
    for one_call in (found.fxenorm_step, found.fxenorm_cycles):
        one_call.argtypes, one_call.restype = [pointer], ctypes.c_int
    return found

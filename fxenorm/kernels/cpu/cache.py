"""The folder of compiled kernels: which folder can be trusted, and which file in it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Cache", "open_cache"]

_FAILURE_SECONDS = 24 * 3600.0
"""A failed attempt is not repeated for a day: what was missing, OpenMP for instance, may be installed later."""

_STRAY_SECONDS = 3600.0
"""Work folders older than this belong to processes that were killed: no attempt takes so long."""

_WORK = "work-"


class Cache:
    """One folder of compiled kernels.

    Args:
        folder: where the kernels are looked for.
        made_in: where new ones are made: the same folder, or a private one where that cannot be written or trusted.
        note: why `folder` itself is not used, "" where it is.
    """

    def __init__(self, folder: Path | None, made_in: Path, note: str = "") -> None:
        self.folder, self.made_in, self.note = folder, made_in, note
        self._process = os.getpid()

    def find(self, name: str) -> Path | None:
        """Returns the file of that name if it is there, trusted and whole; None otherwise."""
        for folder in dict.fromkeys((self.folder, self.made_in)):
            path = None if folder is None else folder / name
            if path is not None and _is_trusted_file(path) and _is_whole(path):
                return path
        return None

    def failure(self, name: str) -> str | None:
        """Returns the complaint of the last attempt to make `name`, if that was less than a day ago; None otherwise."""
        for folder in dict.fromkeys((self.folder, self.made_in)):
            path = None if folder is None else folder / f"{name}.failed"
            if path is not None and _is_trusted_file(path) and abs(time.time() - path.stat().st_mtime) < _FAILURE_SECONDS:
                return path.read_text(encoding="utf-8", errors="replace")
        return None

    @contextlib.contextmanager
    def work_folder(self) -> Iterator[Path]:
        """Makes a folder for one attempt and removes it at exit.

        Raises:
            OSError: there is no room, or no right to write.
        """
        made = Path(tempfile.mkdtemp(prefix=_WORK, dir=self.made_in))
        try:
            yield made
        finally:
            self._remove(made)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yields whether this process alone may make `name` now; the claim ends at exit, and with the process."""
        import fcntl  # Windows, where nothing is compiled, has none

        with (self.made_in / f"{name}.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            except OSError:  # a file system without locks: two processes may do the same work
                yield True
            else:
                yield True

    def keep(self, made: Path, name: str) -> Path:
        """Moves a finished file into the cache, its size and checksum beside it; no reader ever sees half of it.

        Raises:
            OSError: there is no room, or no right to write.
        """
        path = self.made_in / name
        beside = made.with_name("checksum")
        beside.write_text(_checksum(made), encoding="ascii")
        made.chmod(0o700)
        os.replace(beside, _beside(path))
        os.replace(made, path)
        with contextlib.suppress(OSError):
            (self.made_in / f"{name}.failed").unlink()
        return path

    def remember_failure(self, name: str, complaint: str) -> None:
        """Keeps the complaint, so that other processes do not repeat the attempt today."""
        with contextlib.suppress(OSError):  # without room every process tries anew
            (self.made_in / f"{name}.failed").write_text(complaint, encoding="utf-8")

    def clean(self) -> None:
        """Removes what killed processes left behind."""
        for path in self.made_in.glob(f"{_WORK}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STRAY_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Removes the private folder, if there is one: a loaded library needs its file no more."""
        if self.made_in != self.folder:
            self._remove(self.made_in)

    def _remove(self, folder: Path) -> None:
        """Removes a folder that this process made: a forked child leaves those of its parent alone."""
        if os.getpid() == self._process:
            shutil.rmtree(folder, ignore_errors=True)


def open_cache() -> Cache:
    """Finds the cache below XDG_CACHE_HOME or the user's home.

    A folder is written to if it belongs to the user and nobody else can write to it. It is read if it belongs to the user
    or to root and nobody else can write to it. Otherwise a private folder is made, which `Cache.close` removes.

    Raises:
        OSError: no folder can be written at all.
    """
    folder = _wanted_folder()
    note = ""
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not folder.is_dir():
            folder = None
        elif not _is_trusted(folder):
            note = f"{folder} can be written by other users, so it is not used: give it the mode 700 or remove it"
            folder = None
        elif _belongs_to_user(folder) and os.access(folder, os.W_OK):
            return Cache(folder, folder)
    return Cache(folder, Path(tempfile.mkdtemp(prefix="fxenorm-")), note)


def _wanted_folder() -> Path | None:
    """Returns the folder by the rules of the XDG base directories; None if the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # a relative path is to be ignored, says the specification
        base = os.path.expanduser("~/.cache")
    return Path(base) / "fxenorm" if os.path.isabs(base) else None


def _belongs_to_user(path: Path) -> bool:
    """Returns whether the user owns it."""
    return path.stat().st_uid == os.getuid()


def _is_trusted(path: Path) -> bool:
    """Returns whether the user or root owns it and nobody else can write to it."""
    found = path.stat()
    return found.st_uid in (0, os.getuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_trusted_file(path: Path) -> bool:
    """Returns whether it is a plain file, no link, that `_is_trusted`."""
    return path.is_file() and not path.is_symlink() and _is_trusted(path)


def _beside(path: Path) -> Path:
    """Returns the file that holds the size and the checksum of `path`."""
    return path.with_name(f"{path.name}.sha256")


def _checksum(path: Path) -> str:
    """Returns the size and the SHA-256 of a file's content."""
    content = path.read_bytes()
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}"


def _is_whole(path: Path) -> bool:
    """Returns whether the file's content is the one that was kept."""
    try:
        return _is_trusted_file(_beside(path)) and _beside(path).read_text(encoding="ascii", errors="replace") == _checksum(path)
    except OSError:
        return False

"""Files that appear whole or not at all: they are written beside their places and renamed together at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ..errors import CheckpointError

__all__ = ["WholeFiles", "refuse_existing"]

_BESIDE, _KEPT = ".being-written", ".before-writing"


def refuse_existing(paths: Iterable[Path], force: bool) -> None:
    """Raises where one of some files cannot be written, before the work for it begins.

    Args:
        paths: the files.
        force: whether files that are there may be replaced.

    Raises:
        CheckpointError: a file is there and `force` is not given, a folder has its name, or its own folder is missing.
    """
    for path in paths:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: name a file")
        if path.exists() and not force:
            raise CheckpointError(f"{path} exists: name another file, or overwrite it with --force")
        if not path.parent.is_dir():
            raise CheckpointError(f"{path} cannot be written: there is no folder {path.parent}")
        if not os.access(path.parent, os.W_OK):
            raise CheckpointError(f"{path} cannot be written: the folder {path.parent} is read-only")


def _copy(path: Path, goal: Path) -> None:
    """Gives a file a second name; a copy where the file system has no such thing."""
    try:
        os.link(path, goal)
    except OSError:
        shutil.copyfile(path, goal)


class WholeFiles:
    """A context: files are written to the paths of `beside`, and take their places when it ends without an error.

    Where one of them cannot take its place the earlier ones are put back, so that files that belong together stay together.
    """

    def __init__(self) -> None:
        self._written: dict[Path, Path] = {}
        self._folders: list[Path] = []

    def __enter__(self) -> WholeFiles:
        return self

    def folder(self, path: Path) -> None:
        """Makes a folder for files of the context; it goes again if nothing comes into it."""
        if not path.is_dir():
            path.mkdir()
            self._folders.append(path)

    def beside(self, path: Path) -> Path:
        """Returns the path to which the content of a file is written for now."""
        self._written[path] = path.with_name(f".{path.name}{_BESIDE}")
        return self._written[path]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._take_places()
        finally:
            for temporary in self._written.values():
                temporary.unlink(missing_ok=True)
            for folder in self._folders:
                with contextlib.suppress(OSError):  # where files have come into it, it stays
                    folder.rmdir()

    def _take_places(self) -> None:
        """Renames all files; puts the old ones back where that fails on the way."""
        for temporary in self._written.values():
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        kept: dict[Path, Path] = {}
        taken: list[Path] = []
        try:
            for path in self._written:
                if path.exists():
                    kept[path] = path.with_name(f".{path.name}{_KEPT}")
                    kept[path].unlink(missing_ok=True)
                    _copy(path, kept[path])
            for path, temporary in self._written.items():
                taken.append(path)
                os.replace(temporary, path)
        except BaseException:
            for path in taken:
                if path in kept:
                    os.replace(kept[path], path)
                else:
                    path.unlink(missing_ok=True)
            raise
        finally:
            for old in kept.values():
                old.unlink(missing_ok=True)

"""Files that appear whole or not at all: they are written beside their places and renamed together at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ..checkpoint.files.placing import finish_placing, place
from ..errors import CheckpointError

__all__ = ["WholeFiles", "refuse_existing"]

_BESIDE = ".being-written"


def refuse_existing(paths: Iterable[Path], force: bool) -> None:
    """Raises where one of some files cannot be written, before the work for it begins.

    Args:
        paths: the files.
        force: whether files that are there may be replaced.

    Raises:
        CheckpointError: a file is there and `force` is not given, a folder has its name, or its own folder is missing.

    What a killed process has left on its way to these places is finished first.
    """
    for path in paths:
        finish_placing(path)
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: name a file")
        if path.exists() and not force:
            raise CheckpointError(f"{path} exists: name another file, or overwrite it with --force")
        if not path.parent.is_dir():
            raise CheckpointError(f"{path} cannot be written: there is no folder {path.parent}")
        if not os.access(path.parent, os.W_OK):
            raise CheckpointError(f"{path} cannot be written: the folder {path.parent} is read-only")


class WholeFiles:
    """A context: files are written to the paths of `beside`, and take their places when it ends without an error.

    Where one of them cannot take its place the earlier ones are put back, so that files that belong together stay together. Where
    the process is killed while they take their places, the next run that writes there, or `finish_placing`, goes on with it.
    """

    def __init__(self) -> None:
        self._written: dict[Path, Path] = {}
        self._folders: dict[Path, Path] = {}

    def __enter__(self) -> WholeFiles:
        return self

    def folder(self, path: Path) -> None:
        """Makes a folder for files of this context; it takes its place as a whole, with what else an old one holds."""
        goal = path.resolve()
        made = goal.with_name(f".{goal.name}{_BESIDE}")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        self._folders[path] = made

    def beside(self, path: Path) -> Path:
        """Returns the path to which the content of a file is written for now."""
        if path.parent in self._folders:
            return self._folders[path.parent] / path.name
        self._written[path] = path.with_name(f".{path.name}{_BESIDE}")
        return self._written[path]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                folders = {path.resolve(): made for path, made in self._folders.items()}
                for goal, made in folders.items():
                    if goal.is_dir():
                        _take_along(goal, made)
                place({**folders, **self._written})
        finally:
            for temporary in self._written.values():
                temporary.unlink(missing_ok=True)
            for made in self._folders.values():
                shutil.rmtree(made, ignore_errors=True)


def _take_along(old: Path, new: Path) -> None:
    """Gives what a folder holds a second name in the folder that comes in its place, but for what that has already."""
    shutil.copystat(old, new)
    for path in sorted(old.iterdir()):
        goal = new / path.name
        if goal.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, goal, symlinks=True, copy_function=_link)
        else:
            _link(path, goal)


def _link(path: Path | str, goal: Path | str) -> None:
    """Gives a file a second name; a copy where the file system has no such thing."""
    try:
        os.link(path, goal, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copyfile(path, goal, follow_symlinks=False)

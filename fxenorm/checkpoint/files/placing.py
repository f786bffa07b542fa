"""Puts files and folders that belong together in their places: a kill on the way is made good at the next start.

All of them lie complete beside their places. A list of the renames is written first and removed last, so that whoever finds one
carries it out. Folders are renamed as a whole: at no time does one hold some old files and some new ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from .blocks import flush

__all__ = ["finish_placing", "place"]

_BEFORE = ".before-writing"


def place(made: Mapping[Path, Path]) -> None:
    """Renames files and folders to their places; all of them, or none where an error is met on the way.

    Args:
        made: by place, the complete file or folder, which lies in the same file system.
    """
    if not made:
        return
    for path in made.values():
        _to_disk(path)
    pairs = [(beside, path) for path, beside in made.items()]
    list_of_renames = _list_beside(pairs[0][1])
    taken: list[Path] = []
    try:
        _write_list(list_of_renames, pairs)
        for _, path in pairs:
            _set_aside(path)
        for beside, path in pairs:
            taken.append(path)
            os.replace(beside, path)
    except BaseException:
        list_of_renames.unlink(missing_ok=True)
        for beside, path in pairs:
            _put_back(path, beside, path in taken)
        raise
    _finish(list_of_renames, pairs)


def finish_placing(path: Path) -> bool:
    """Carries out the renames that a killed process has left, if one of the places is this; returns whether there were any."""
    list_of_renames = _list_beside(path)
    try:
        pairs = [(Path(beside), Path(goal)) for beside, goal in json.loads(list_of_renames.read_text("utf-8"))]
    except FileNotFoundError:
        return False
    except (ValueError, TypeError):  # the list itself was cut off: no rename has happened
        list_of_renames.unlink()
        return False
    for beside, goal in pairs:
        if beside.exists():
            if goal.is_dir():
                _set_aside(goal)
            os.replace(beside, goal)
    _finish(list_of_renames, pairs)
    return True


def _list_beside(path: Path) -> Path:
    """Returns where the list of renames stands whose first place is a path."""
    return path.with_name(f".{path.name}.being-placed")


def _aside(path: Path) -> Path:
    """Returns where what was in a place before is kept until all is placed."""
    return path.with_name(f".{path.name}{_BEFORE}")


def _write_list(path: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Writes the list of renames, and waits until the disk has it."""
    with path.open("w", encoding="utf-8") as file:
        json.dump([[str(beside.absolute()), str(goal.absolute())] for beside, goal in pairs], file)
        file.flush()
        os.fsync(file.fileno())


def _set_aside(path: Path) -> None:
    """Keeps what is in a place: a folder is moved, since none can be renamed over another; a file gets a second name."""
    old = _aside(path)
    if not path.exists():
        return
    _remove(old)
    if path.is_dir():
        os.rename(path, old)
        return
    try:
        os.link(path, old)
    except OSError:  # a file system without second names
        shutil.copyfile(path, old)


def _put_back(path: Path, beside: Path, taken: bool) -> None:
    """Undoes one rename, which may have happened or not."""
    old = _aside(path)
    if taken and not beside.exists() and path.is_dir():
        os.rename(path, beside)
    if old.exists():
        os.replace(old, path)
        old.unlink(missing_ok=True)  # a second name of the very file stays at a rename
    elif taken and not beside.exists():
        path.unlink(missing_ok=True)


def _finish(list_of_renames: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Removes what was there before, and then the list."""
    for _, path in pairs:
        _remove(_aside(path))
    list_of_renames.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Waits until the disk has a file, or all files of a folder."""
    for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if one.is_file():
            flush(one)

"""Runs a user's code: where it finds its modules, where its prints go, and one message of whatever it raises."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from ...errors import ModelFileError

__all__ = ["looking_in", "running"]


@contextlib.contextmanager
def looking_in(*folders: Path, last: Path | None = None) -> Iterator[None]:
    """Puts folders first on ``sys.path``, and one at its end, while the context lasts."""
    before = sys.path[:]
    sys.path[:0] = [os.fspath(folder.resolve()) for folder in folders]
    if last is not None:
        sys.path.append(os.fspath(last.resolve()))
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def running(place: str, before: str = "") -> Iterator[None]:
    """Runs code of the user's: without arguments of the command line, prints kept off stdout, failures as one message.

    Args:
        place: the file or module, as the user named it.
        before: what is called, for the message: "build() in ".

    Raises:
        ModelFileError: the code raised anything but an interrupt; the message holds its line.
    """
    saved = sys.argv[:]
    sys.argv[:] = [place]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ModelFileError:
        raise
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text and error.text.strip() else ""
        where = f"{error.filename or place}:{error.lineno or '?'}"
        raise ModelFileError(f"{before}{where}: {type(error).__name__}: {error.msg}{text}") from error
    except SystemExit as error:
        raise ModelFileError(f"{before}{_place(error, place)}: the file ends the process (SystemExit: {error.code})") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file may raise what it likes
        text = str(error).strip()
        told = f"{type(error).__name__}{': ' if text else ''}{text}{_hint(error, place)}"
        raise ModelFileError(f"{before}{_place(error, place)}: {told}") from error
    finally:
        sys.argv[:] = saved


def _place(error: BaseException, place: str) -> str:
    """``file:line, in function`` of the innermost frame in the user's file, or its name."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_of(frame.filename, place):
            shown = place if place.endswith(".py") else frame.filename
            return f"{shown}:{frame.lineno}, in {frame.name}"
    return place


def _is_of(file: str, place: str) -> bool:
    """Whether a file is the one that the user named, or for a module one of the working directory's."""
    if place.endswith(".py"):
        return file == place or os.path.abspath(file) == os.path.abspath(place)
    return file.startswith(os.getcwd() + os.sep) and "site-packages" not in file


def _hint(error: BaseException, place: str) -> str:
    """Returns what to do about imports that find nothing."""
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        path = Path(place).resolve()
        return (
            f"; the file is part of a package: put an __init__.py beside it, or name it {path.parent.name}.{path.stem} "
            f"from the folder {path.parent.parent}"
        )
    if isinstance(error, ModuleNotFoundError):
        return f" (looked for beside the file, in the working directory {Path.cwd()}, and in what PYTHONPATH and pip offer)"
    return ""

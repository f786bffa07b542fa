"""The C++ compilers of this machine, in the order in which they are tried."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

__all__ = ["find_compilers"]

_NAMES = ("c++", "g++", "clang++")


def find_compilers() -> tuple[list[tuple[str, ...]], list[str]]:
    """Looks for compilers: the one named by CXX, which may carry arguments, then the usual names.

    Returns:
        Commands, each a program with its first arguments, and complaints about what CXX names in vain.
    """
    if sys.platform == "win32":
        return [], ["on Windows the kernels are not compiled"]
    found: list[tuple[str, ...]] = []
    complaints: list[str] = []
    named = os.environ.get("CXX", "").strip()
    if named:
        command = _split(named)
        program = shutil.which(command[0]) if command else None
        if program is None:
            complaints.append(f"CXX={named!r} is no program on the path")
        else:
            found.append((program, *command[1:]))
    if sys.platform == "darwin" and not _has_command_line_tools():
        complaints.append("the command line tools of Xcode are not installed")
        return found, complaints
    found += [(program,) for name in _NAMES if (program := shutil.which(name)) and (program,) not in found]
    if not found:
        complaints.append(f"there is no C++ compiler ({', '.join(_NAMES)}) on the path")
    return found, complaints


def _split(command: str) -> list[str]:
    """Splits a command as a shell does; a command with an open quote is taken as one word."""
    try:
        return shlex.split(command)
    except ValueError:
        return [command]


def _has_command_line_tools() -> bool:
    """Returns whether Apple's compilers are there: where they are not, calling one opens a dialog on the screen."""
    try:
        asked = subprocess.run(["xcode-select", "-p"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0

"""The console that prints the answer: coloured and as wide as the terminal, plain and without limits in a pipe or file."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

__all__ = ["NO_LIMIT", "make_console"]

NO_LIMIT = 100_000
"""Columns of a table where nothing limits it."""


class _AnswerConsole(Console):
    """A console that leaves it to its user to notice that the reader (head, less) has gone."""

    def on_broken_pipe(self) -> None:
        """Raises the error again, in place of rich's exit."""
        raise BrokenPipeError


def make_console(stream: TextIO) -> Console:
    """Returns a console for a stream: as wide as the terminal, without colours and limits where the output goes to a file."""
    if stream.isatty():
        return _AnswerConsole(file=stream, highlight=False, emoji=False, markup=False)
    return _AnswerConsole(file=stream, width=NO_LIMIT, color_system=None, highlight=False, emoji=False, markup=False)

"""Keeps the answer clean, and the exit code true, whatever the code of a model's file prints, raises or ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

__all__ = ["answer_stream", "one_line", "printable", "run_apart"]


@contextlib.contextmanager
def answer_stream(lasting: bool) -> Iterator[TextIO]:
    """Yields the stream for the answer; all else that is written to stdout, also past Python, goes to stderr.

    Args:
        lasting: whether that stays so after the end, for what runs when the interpreter ends.
    """
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no stream of the process, as in a notebook or a test
        stream = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield stream
        stream.flush()
        return
    sys.stdout.flush()
    kept = os.dup(number)
    _send_to_stderr(number)
    try:
        # A console that lacks a sign gets a question mark, not a crash.
        with open(os.dup(kept), "w", encoding=sys.stdout.encoding, errors="replace") as stream:
            yield stream
    finally:
        if not lasting:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os.dup2(kept, number)
        os.close(kept)


def _send_to_stderr(number: int) -> None:
    """Makes a file descriptor mean stderr; nothing, where there is no stderr."""
    try:
        os.dup2(2, number)
    except OSError:
        with open(os.devnull, "w", encoding="utf-8") as nothing:
            os.dup2(nothing.fileno(), number)


def run_apart(work: Callable[[], int]) -> int:
    """Runs `work` in a child process where the system has `fork`, so that code which ends the process is told as an error.

    Args:
        work: returns the exit code; called before torch is imported, so that the child costs nothing.

    Returns:
        The exit code: that of `work`, or 2, with one line on stderr, where the process ended on the way.
    """
    if not hasattr(os, "fork"):
        return work()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = work()
        os.write(writer, bytes([code]))
        os.close(writer)
        return code
    os.close(writer)
    with _signals_to(child):
        told = os.read(reader, 1)
        _, status = os.waitpid(child, 0)
    os.close(reader)
    if told:
        return told[0]
    print(f"fxenorm-inspect: error: the model's code ended the process ({_ending(status)})", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _signals_to(child: int) -> Iterator[None]:
    """Hands a request to end on to the child; an interrupt from the keyboard reaches it anyway."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    handlers: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: hand_on, signal.SIGHUP: hand_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending(status: int) -> str:
    """Returns in words how a process ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"signal {number}, {signal.Signals(number).name}"
    return f"exit code {os.WEXITSTATUS(status)}"


def printable(value: Any) -> Any:
    """Returns the same text, or dict or list of texts, with signs that steer a terminal spelt out."""
    if isinstance(value, str):
        return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in value)
    if isinstance(value, dict):
        return {key: printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list) else value


def one_line(text: str) -> str:
    """Returns a message without line breaks and without signs that steer a terminal."""
    return str(printable(" ".join(text.split())))

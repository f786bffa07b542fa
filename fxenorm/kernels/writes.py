"""Writes that are all done or all undone: nothing is copied for it where nothing goes wrong.

Each write happens as a whole or not at all, and can be undone. Where an exception comes between two of them, the others are
finished before it goes on, or else what was written is undone; where that fails too, what is left is kept for later.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor

__all__ = ["Unfinished", "Write", "carry_out", "signals_held_back"]

_NAMES = "INT TERM HUP QUIT ALRM VTALRM PROF USR1 USR2 CHLD CONT TSTP TTIN TTOU PIPE WINCH IO URG XCPU BREAK"
_SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in _NAMES.split() if hasattr(signal, f"SIG{name}"))
"""The signals that a program may have handlers for; faults, as SIGSEGV, are not held back."""


class Write(ABC):
    """One write, which happens as a whole or not at all.

    Args:
        names: what is written, for messages.
        tensors: the tensors themselves; may be empty where writing twice does no harm.

    Attributes:
        written: whether it has happened.
    """

    def __init__(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        self.names, self.tensors = tuple(names), tuple(tensors)
        self.written = False
        self._before: list[int] | None = None

    @abstractmethod
    def forward(self) -> None:
        """Writes all of it, or raises and writes nothing."""

    @abstractmethod
    def backward(self) -> None:
        """Undoes it, but for a rounding."""

    def watch(self) -> None:
        """Notes how things are before a write or an undoing, for `happened`."""
        self._before = versions(self.tensors)

    def happened(self) -> bool:
        """Whether an interrupted write or undoing has come through: autograd counts the writes of each tensor."""
        return self._before is not None and versions(self.tensors) != self._before

    def run(self) -> None:
        """Writes, unless that has happened already."""
        if not self.written:
            self._guarded(True)

    def undo(self) -> None:
        """Undoes the write, if it has happened."""
        if self.written:
            self._guarded(False)

    def _guarded(self, ahead: bool) -> None:
        """Goes one way, and knows afterwards whether it got there, whatever is raised on the way."""
        self.watch()
        try:
            (self.forward if ahead else self.backward)()
        except BaseException:
            if self.happened():
                self.written = ahead
            raise
        self.written = ahead


class Unfinished(list[Write]):
    """Writes of which some have happened and some have not, and neither finishing nor undoing them was possible."""


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """Returns how often each tensor was written; inference tensors are not counted."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def carry_out(writes: Sequence[Write], *, owed: bool = False) -> None:
    """Does all of the writes; in the main thread signals wait until that is over.

    An exception leaves with all writes done, which its attribute ``carried_out`` says, or with none of them. Where neither can be
    had it is raised with what is left as its attribute ``unfinished``.

    Args:
        writes: in their order.
        owed: whether other processes do theirs: what cannot be finished is undone for now, and ``unfinished`` all the same.
    """
    with signals_held_back():
        try:
            for write in writes:
                write.run()
        except BaseException as error:
            begun = owed or any(write.written for write in writes)
            if begun and _all(writes, True):
                error.carried_out = True  # type: ignore[attr-defined]
            elif begun and (not _all(writes, False) or owed):
                error.unfinished = Unfinished(writes)  # type: ignore[attr-defined]
            raise


def _all(writes: Sequence[Write], ahead: bool) -> bool:
    """Whether all writes can be finished, or undone; goes on where one cannot."""
    complete = True
    for write in writes if ahead else reversed(writes):
        try:
            if ahead:
                write.run()
            else:
                write.undo()
        except BaseException:  # the first error is the one to be raised
            complete = complete and write.written == ahead
    return complete


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Holds signals back until the block is left; in the main thread, which alone runs handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: list[tuple[int, Any]] = []
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        """Stands in for the program's own handlers."""
        arrived.append(number)

    try:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers.append((number, handler))
                signal.signal(number, note)
        yield
    finally:
        _put_back(handlers)
        for number in arrived:
            signal.raise_signal(number)


def _put_back(handlers: list[tuple[int, Any]]) -> None:
    """Puts all handlers back, even where one of them raises at once."""
    try:
        while handlers:
            signal.signal(*handlers[-1])
            handlers.pop()
    finally:
        if handlers:
            handlers.pop()
            _put_back(handlers)

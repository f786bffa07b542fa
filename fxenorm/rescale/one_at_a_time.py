"""One call of a plan at a time, whatever the threads; and no OpenMP threads in a process that was forked."""

from __future__ import annotations

import os
import threading

import torch

__all__ = ["OneAtATime"]


class OneAtATime:
    """A lock that a thread may take again. It is not copied: whoever copies a plan makes a new one.

    OpenMP cannot start threads in a child of a process in which it had some: it waits for them for ever. So calls in such a
    child run on one thread.
    """

    def __init__(self) -> None:
        self._home = os.getpid()
        self._renew()

    def _renew(self) -> None:
        """Makes a lock of this process: in a child of a fork the old one may be held by a thread that is not there."""
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._depth, self._threads = 0, 0

    def __enter__(self) -> None:
        """Waits until no other thread is in a call."""
        if os.getpid() != self._process:
            self._renew()
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1 and self._process != self._home:
            self._threads = torch.get_num_threads()
            if self._threads > 1:
                torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        """Lets the next thread in."""
        self._depth -= 1
        if self._depth == 0 and self._threads > 1:
            torch.set_num_threads(self._threads)
            self._threads = 0
        self._lock.release()

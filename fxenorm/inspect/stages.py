"""Tells a waiting user which stage is running, on a terminal and only when it takes a while."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

__all__ = ["Stages"]

_PATIENCE = 2.0
"""Seconds before anything is said: a small model is done by then, and a line that appears and goes would only flicker."""


class Stages:
    """A context in which `begin` names the stage that follows; a line on stderr shows it once two seconds have passed."""

    def __init__(self) -> None:
        self._stage = ""
        self._status: Any = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Stages:
        if sys.stderr.isatty():
            self._timer = threading.Timer(_PATIENCE, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._status is not None:
                self._status.stop()

    def begin(self, stage: str) -> None:
        """Names the stage that begins now, and shows it where a line is shown."""
        with self._lock:
            self._stage = stage
            if self._status is not None:
                self._status.update(stage)

    def _show(self) -> None:
        """Starts the line; runs in the timer's thread."""
        from rich.console import Console

        with self._lock:
            if self._timer is not None:
                self._status = Console(stderr=True).status(self._stage)
                self._status.start()

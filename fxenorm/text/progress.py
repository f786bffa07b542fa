"""Shows the progress of long work, on a terminal only."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["bytes_done", "progress"]

_PATIENCE = 2.0
"""Seconds before anything is shown, a choice: who waits longer than this looks for a sign."""


@contextmanager
def progress(tol: float) -> Iterator[Callable[[int, float], None] | None]:
    """Gives a function to call with each iteration's number and imbalance; None where standard error is no terminal.

    The bar shows how much of the way to the tolerance is done, on a logarithmic scale, after the first seconds.

    Args:
        tol: the imbalance that ends the iteration.
    """
    if not (sys.stderr is not None and sys.stderr.isatty()):
        yield None
        return
    begun = time.monotonic()
    bar: Any = None
    task: Any = None
    first = 0.0

    def report(iteration: int, imbalance: float) -> None:
        """Moves the bar to an iteration's imbalance."""
        nonlocal bar, task, first
        if time.monotonic() - begun < _PATIENCE or not 0 < imbalance < math.inf:
            return
        if bar is None:
            # Imported here: most runs end before anything is shown.
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True, force_jupyter=False), transient=True)
            task = bar.add_task("balance", total=1.0)
            bar.start()
        first = max(first, imbalance)
        done = math.log(first / imbalance) / math.log(first / tol) if first > tol else 1.0
        bar.update(task, completed=done, description=f"balance: iteration {iteration}, imbalance {imbalance:.1e}")

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


@contextmanager
def bytes_done(title: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the bytes that are done; shows the rate and the time left, on a terminal only.

    Args:
        title: what is being done.
        total, done: all bytes, and those that an earlier run has done.
    """
    if not (sys.stderr is not None and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)

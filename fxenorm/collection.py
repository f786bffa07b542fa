"""Python's garbage collection, put off while many small objects are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["collection_paused"]


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage is collected within it, for one collection walks all objects of torch and takes longer than many traces.

    For work on fake values only: what waits for a collection then takes no room.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

"""Python's garbage collection, put off while many small objects are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["collection_paused", "collection_resumed"]

_paused: ContextVar[bool] = ContextVar("fxenorm_collection_paused", default=False)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage is collected within it, for one collection walks all objects of torch and takes longer than many traces.

    For work on fake values only: what waits for a collection then takes no room.
    """
    enabled = gc.isenabled()
    token = _paused.set(_paused.get() or enabled)
    gc.disable()
    try:
        yield
    finally:
        _paused.reset(token)
        if enabled:
            gc.enable()


@contextlib.contextmanager
def collection_resumed() -> Iterator[None]:
    """Garbage is collected within it as ever, also within `collection_paused`: for work on real values, which take room."""
    paused = _paused.get() and not gc.isenabled()
    if paused:
        gc.enable()
    try:
        yield
    finally:
        if paused:
            gc.disable()

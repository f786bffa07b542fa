"""Memory for tensors of files, taken from the system once and used again.

To touch new pages may cost more than to read them from a disk: the system clears each, and a virtual machine fetches it first.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Memory"]


class Memory:
    """Pages that come back when the last tensor in them is gone, and serve the next one of their size.

    What fits nowhere goes back to the system, so that there is never more than was in use at some time.
    """

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque()

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        """Returns how a copy or another process makes one: empty."""
        return Memory, ()

    def take(self, size: int) -> NDArray[np.uint8]:
        """Returns (size,) bytes of any value, at the start of a page.

        Args:
            size: more than 0.
        """
        pages = self._found(size)
        if pages is None:
            pages = _new_pages(size)
        values = np.frombuffer(pages, dtype=np.uint8)
        weakref.finalize(values, self._free.append, pages).atexit = False
        return values

    def _found(self, size: int) -> mmap.mmap | None:
        """Returns free pages of a size; where there are none, the system gets back what is free."""
        found, others = None, []
        while True:
            try:
                pages = self._free.popleft()
            except IndexError:
                break
            if found is None and len(pages) == size:
                found = pages
            else:
                others.append(pages)
        if found is not None:
            self._free.extend(others)
        return found


def _new_pages(size: int) -> mmap.mmap:
    """Returns pages of their own, large ones where the system has them: they can be given back, as pieces of a heap cannot."""
    private: dict[str, Any] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without large pages takes small ones
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages

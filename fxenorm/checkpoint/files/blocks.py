"""Bytes between files and memory, past the page cache where the system allows it.

A checkpoint is read once and written once, and its pages in the cache would push out others: to find room for them takes longer
than the disk does. Whole blocks go straight between disk and memory; where a file system does not offer that, and for what is
left at both ends, it is the cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "flush", "read_at", "room_for", "write_at"]

BLOCK = 4096
"""Bytes of a block: a multiple of what disks ask for. Memory and file have to be at the same place within one."""

_FEWEST = 1 << 20
"""Bytes that are worth it: fewer take longer on the disk than the cache takes."""

Bytes = NDArray[np.uint8]


def room_for(begin: int, count: int) -> int:
    """Returns how many bytes of memory `read_at` needs for some bytes of a file: they begin at ``begin % BLOCK`` there."""
    return -(-(begin % BLOCK + count) // BLOCK) * BLOCK


def read_at(path: Path, begin: int, count: int, room: Bytes) -> Bytes:
    """Reads bytes of a file.

    Args:
        path: the file.
        begin, count: which.
        room: (`room_for`,) memory at the start of a page; what lies around the bytes in their blocks may come with them.

    Returns:
        Those that are read, a view of the room: fewer than asked for only where the file ends.
    """
    shift = begin % BLOCK
    view, done = room.data[: room_for(begin, count)], 0
    if count >= _FEWEST:
        with _straight(path, os.O_RDONLY) as file:
            while file is not None and done < len(view):
                got = _moved(os.preadv, file, view[done:], begin - shift + done)
                done += got
                if not got or done % BLOCK:
                    break
    done = max(done, shift)
    with path.open("rb", buffering=0) as plain:
        plain.seek(begin - shift + done)
        while done < shift + count:
            got = plain.readinto(view[done : shift + count])
            if not got:
                break
            done += got
    return room[shift : min(done, shift + count)]


def write_at(path: Path, begin: int, values: Bytes) -> None:
    """Writes bytes to their place in a file that is there.

    Args:
        path: the file.
        begin: their place.
        values: (count,) without gaps; whole blocks go straight to the disk where they lie as `read_at` puts them.
    """
    first, last = -begin % BLOCK, (begin + values.size) // BLOCK * BLOCK - begin
    view, done = values.data, first
    if last - first >= _FEWEST and (values.ctypes.data + first) % BLOCK == 0:
        with _straight(path, os.O_WRONLY) as file:
            while file is not None and done < last:
                got = _moved(os.pwritev, file, view[done:last], begin + done)
                done += got
                if not got or (begin + done) % BLOCK:
                    break
    with path.open("r+b", buffering=0) as plain:
        for start, end in ((0, min(first, values.size)), (min(done, values.size), values.size)):
            plain.seek(begin + start)
            while start < end:
                start += plain.write(view[start:end]) or 0
        if hasattr(os, "posix_fadvise"):  # the disk begins at once, not all at the end
            os.posix_fadvise(plain.fileno(), begin, values.size, os.POSIX_FADV_DONTNEED)


def flush(path: Path) -> None:
    """Waits until the disk has what was written to a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _straight(path: Path, flags: int) -> Iterator[int | None]:
    """Opens a file past the page cache; None where the system does not offer it."""
    file = None
    if hasattr(os, "O_DIRECT") and hasattr(os, "preadv"):
        with contextlib.suppress(OSError):  # some file systems have no such way
            file = os.open(path, flags | os.O_DIRECT)
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


def _moved(move: Callable[[int, list[memoryview], int], int], file: int, part: memoryview, place: int) -> int:
    """Returns how many bytes a call moves; 0 where it fails: the cache is the way then, and meets the same error if any."""
    try:
        return move(file, [part], place)
    except OSError:
        return 0

"""A copy of the working tree in a temporary folder: what is mutated is never anybody's own files."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]


def _leave(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """Copy what git tracks or would track into a temporary folder; the folder is gone after the block, whatever ends it."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with tempfile.TemporaryDirectory(prefix="fxenorm-mutants-", ignore_cleanup_errors=True) as folder:
            copy = Path(folder)
            for name in filter(None, names.decode().split("\0")):
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            yield copy
    finally:
        signal.signal(signal.SIGTERM, before)

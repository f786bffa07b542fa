"""``python -m fxenorm.kernels`` compiles the CPU kernels ahead of time, for images and clusters."""

from __future__ import annotations

import sys

from .cpu.build import kernels

__all__ = ["main"]


def main() -> int:
    """Compiles the kernels where the cache does not hold them; returns 0, or 1 where that fails, and prints which."""
    found = kernels()
    found.wait()
    if found.note:
        print(f"fxenorm: {found.note}", file=sys.stderr)
    if found.library is None:
        print(f"fxenorm: the kernels cannot be compiled: {found.failure}", file=sys.stderr)
        return 1
    print(f"fxenorm: the kernels are ready: {found.library._name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

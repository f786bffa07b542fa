"""Rounds two small nets after several ways to rescale them: `python tools/quantise.py` trains, measures and prints tables."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from quantisation.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

"""The paper's experiments, and a study of what balancing does: `python tools/reproduce.py mlp` trains and prints a table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from study.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

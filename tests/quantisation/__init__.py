"""Tests of bits, of rounded runs, and of tools/quantise.py and the package behind it, tools/quantisation."""

import sys
from pathlib import Path

# The tool finds its package beside itself, and so do its tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

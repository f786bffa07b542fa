"""Draws the picture of the README: ``python tools/picture.py`` writes tools/picture.png, which is committed.

It shows a plan of a small residual network: which layers write and read each group of scales, and what fixes the other channels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fxenorm  # noqa: E402

DEFAULT = ROOT / "tools" / "picture.png"


class Small(nn.Module):
    """A residual block between a stem and a head; its layers read and write 16, 8 and 32 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.conv1 = nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.neck = nn.Conv2d(16, 32, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scores, (batch, 10)."""
        x = self.stem(x).relu()
        x = (x + self.conv2(self.norm(self.conv1(x)).relu())).relu()
        return self.head(self.neck(x).relu().mean((2, 3)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="tools/picture.py", description="Draws the picture of the README.")
    parser.add_argument("--output", type=Path, default=DEFAULT, help="file to write")
    chosen = parser.parse_args(arguments)
    fxenorm.analyze(Small(), torch.zeros(2, 3, 16, 16, dtype=torch.float32, device="cpu")).draw(chosen.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

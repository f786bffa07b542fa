"""MNIST and Fashion-MNIST from their files: the IDX format, packed by gzip or not."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..configuration import StudyError
from .task import Part

FOLDERS = ("", "MNIST/raw", "FashionMNIST/raw", "raw")


def _content(path: Path) -> Tensor:
    """A tensor of bytes: the magic number says the type, 8, and how many sizes follow, each of four bytes."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise StudyError(f"{path} is no IDX file of bytes: it begins with {data[:4]!r}")
    start = 4 + 4 * data[3]
    sizes = [int.from_bytes(data[4 + 4 * k : 8 + 4 * k], "big") for k in range(data[3])]
    if len(data) - start != math.prod(sizes):
        raise StudyError(f"{path} has {len(data) - start} values, but its head says {sizes}: it is damaged")
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).copy()).view(sizes)


def idx_images(folder: Path, name: str) -> tuple[Part, Part]:
    """The images to train on and those to test on.

    Args:
        folder: where the four files lie, or the folder above theirs.
        name: of the folder above, where several data sets lie side by side: "MNIST" or "FashionMNIST".

    Raises:
        StudyError: a file is missing or damaged.
    """
    places = [folder / inner for inner in FOLDERS if not inner or "/" not in inner or inner.startswith(f"{name}/")]

    def find(start: str) -> Path:
        found = [place / f"{start}{ending}" for place in places for ending in ("", ".gz")]
        file = next((path for path in found if path.is_file()), None)
        if file is None:
            raise StudyError(f"no {start} or {start}.gz in {folder} or {folder / name / 'raw'}. --download fetches it")
        return file

    def part(which: str) -> Part:
        images, classes = _content(find(f"{which}-images-idx3-ubyte")), _content(find(f"{which}-labels-idx1-ubyte"))
        if len(images) != len(classes):
            raise StudyError(f"{folder}: {which} has {len(images)} images and {len(classes)} classes")
        return Part(images[:, None], classes.long())

    return part("train"), part("t10k")

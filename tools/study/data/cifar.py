"""CIFAR-10 from its files: the binary version and the version for Python."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration import StudyError
from .task import Part

FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar10", "CIFAR10")
RECORD = 1 + 3 * 32 * 32
_NEEDED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Arrays(pickle.Unpickler):
    """Reads arrays, lists and strings; a file that asks for anything else is refused, for a pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Only the few functions that numpy's arrays need."""
        if (module, name) not in _NEEDED:
            raise StudyError(f"a CIFAR-10 file asks for {module}.{name}, which no such file needs: it was not read")
        return super().find_class(module, name)


def _binary(path: Path) -> Part:
    """Records of a class, one byte, and 3 × 32 × 32 bytes of an image."""
    values = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if len(values) % RECORD or not len(values):
        raise StudyError(f"{path} has {len(values)} bytes, no multiple of {RECORD}: it is no CIFAR-10 file of the binary version")
    records = torch.from_numpy(values.reshape(-1, RECORD).copy())
    return Part(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long())


def _pickled(path: Path) -> Part:
    """A dict with "data", (n, 3072) bytes, and "labels", a list."""
    content = _Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    data, labels = (content.get(key, content.get(key.decode())) for key in (b"data", b"labels"))
    if data is None or labels is None:
        raise StudyError(f"{path} has no data and labels: it is no CIFAR-10 file of the Python version")
    return Part(torch.from_numpy(np.array(data, dtype=np.uint8)).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64))


def cifar10(folder: Path) -> tuple[Part, Part]:
    """The images to train on and those to test on.

    Args:
        folder: where the files lie, or the folder above theirs.

    Raises:
        StudyError: there are no such files, or they are damaged.
    """
    for inner in FOLDERS:
        for ending, read in ((".bin", _binary), ("", _pickled)):
            files = [folder / inner / f"{name}{ending}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
            if all(file.is_file() for file in files):
                parts = [read(file) for file in files]
                train = parts[0]
                for part in parts[1:5]:
                    train = train.and_also(part)
                return train, parts[5]
    raise StudyError(
        f"no CIFAR-10 in {folder}: expected data_batch_1.bin to data_batch_5.bin and test_batch.bin (the binary version) or the "
        "same names without .bin (the Python version), there or in cifar-10-batches-bin or cifar-10-batches-py. "
        "--download fetches them"
    )

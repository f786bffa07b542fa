"""Image files in the formats of the real data sets, with made-up content; and small configurations."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study.cells import base
from study.configuration import Configuration
from study.data.task import Part, Task
from study.methods import METHODS, Method

PER_FILE = 20
CIFAR_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def cifar_content(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By file, classes (n,) and images (n, 3072)."""
    random = np.random.default_rng(seed)
    return {
        name: (random.integers(0, 10, PER_FILE, dtype=np.uint8), random.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8))
        for name in CIFAR_FILES
    }


def write_binary_cifar(folder: Path) -> None:
    """The binary version: records of a class and 3072 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (classes, images) in cifar_content().items():
        (folder / f"{name}.bin").write_bytes(np.concatenate([classes[:, None], images], axis=1).tobytes())


def write_python_cifar(folder: Path) -> None:
    """The version for Python: a pickled dict with keys of bytes, as Python 2 wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (classes, images) in cifar_content().items():
        content: dict[bytes, Any] = {
            b"batch_label": name.encode(),
            b"labels": classes.tolist(),
            b"data": images,
            b"filenames": [],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def idx_bytes(values: np.ndarray) -> bytes:
    """A tensor of bytes in the IDX format."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, packed: bool) -> dict[str, np.ndarray]:
    """The four files of MNIST; returns their content."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    content = {}
    for which, count in (("train", 50), ("t10k", 12)):
        content[f"{which}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        content[f"{which}-labels-idx1-ubyte"] = random.integers(0, 10, count, dtype=np.uint8)
    for name, values in content.items():
        data = idx_bytes(values)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return content


def small_task(size: int = 4, channels: int = 1, crop: int = 0) -> Task:
    """A learnable task: the class is where an image is brightest."""
    random = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        images = torch.rand(count, channels, size, size, generator=random)
        classes = torch.randint(10, (count,), generator=random)
        images.view(count, channels, -1)[torch.arange(count), :, classes] += 2.0
        return Part(images, classes)

    return Task(part(96), part(32), part(32), (0.5,), (0.6,), crop=crop)


def small(method: str | Method = "plain", **changes: Any) -> Configuration:
    """A run of seconds: a narrow network of four layers."""
    arm = METHODS[method] if isinstance(method, str) else method
    settings = {"depth": 4, "width": 12, "steps": 12, "rate": 0.02, "seed": 3, "method": arm, **changes}
    return base("small", "none").but(**settings)

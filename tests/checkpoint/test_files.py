"""Bytes, memory and turns of checkpoints: every byte in its place whatever the system offers, and two components at most."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxenorm.checkpoint.files.blocks import BLOCK, read_at, room_for, write_at
from fxenorm.checkpoint.files.memory import Memory
from fxenorm.checkpoint.files.tensor_files import open_files
from fxenorm.checkpoint.in_turn import in_turn
from fxenorm.checkpoint.journal import ComponentReport
from fxenorm.checkpoint.part import Part
from fxenorm.errors import CheckpointError

safetensors = pytest.importorskip("safetensors.torch")

WAYS = ("as it is", "without", "refused", "in steps", "cut short")
PLACES = [(0, 5), (8, 1), (2608, 3 << 20), (4095, (2 << 20) + 2), (4096, 2 << 20), (5000, (1 << 20) + 4096), (0, 5 << 20)]


@pytest.fixture(params=WAYS)
def straight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What comes of an attempt to go past the page cache."""
    way: str = request.param
    real = {name: getattr(os, name) for name in ("preadv", "pwritev")}

    def moved(name: str) -> Any:
        """Stands for the system's call."""

        def call(file: int, parts: list[memoryview], place: int) -> int:
            if way == "refused":
                raise OSError(22, "Invalid argument")
            if way == "cut short":  # the disk gives or takes a part of a block: what is left goes the other way
                return int(real[name](file, [parts[0][:BLOCK]], place)) // 2
            return int(real[name](file, [parts[0][: 64 * BLOCK]], place))

        return call

    if way == "without":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    elif way != "as it is":
        for name in real:
            monkeypatch.setattr(os, name, moved(name))
    return way


@pytest.mark.parametrize(("begin", "count"), PLACES)
def test_bytes_are_read_and_written_at_their_places(straight: str, tmp_path: Path, begin: int, count: int) -> None:
    path, random = tmp_path / "file", np.random.default_rng(0)
    before = random.integers(0, 256, 6 << 20, dtype=np.uint8)
    before.tofile(path)
    memory = Memory()
    read = read_at(path, begin, count, memory.take(room_for(begin, count)))
    assert np.array_equal(read, before[begin : begin + count])
    expected = before.copy()
    for values in (255 - read, np.roll(read, 1)):  # memory at another place within a block
        write_at(path, begin, values)
        expected[begin : begin + count] = values
        assert np.array_equal(np.fromfile(path, dtype=np.uint8), expected)
    read[:] = random.integers(0, 256, count, dtype=np.uint8)
    write_at(path, begin, read)  # where it was read to, so that whole blocks go straight
    expected[begin : begin + count] = read
    assert np.array_equal(np.fromfile(path, dtype=np.uint8), expected)


def test_whole_blocks_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, count = tmp_path / "file", 3 << 20
    np.zeros(count, dtype=np.uint8).tofile(path)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except (OSError, AttributeError):
        pytest.skip("this file system has no such way")
    real = {name: getattr(os, name) for name in ("preadv", "pwritev")}
    moved: dict[str, int] = {}

    def counted(name: str) -> Any:
        def call(*given: Any) -> int:
            moved[name] = moved.get(name, 0) + int(real[name](*given))
            return moved[name]

        return call

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    read = read_at(path, 100, count - 100, Memory().take(room_for(100, count - 100)))
    write_at(path, 100, read)
    assert moved == {"preadv": count, "pwritev": count - BLOCK}


def test_a_file_that_ends_early_gives_what_it_has(straight: str, tmp_path: Path) -> None:
    path, begin = tmp_path / "file", 5000
    values = np.arange((2 << 20) + 77, dtype=np.uint8)
    values.tofile(path)
    room = Memory().take(room_for(begin, 3 << 20))
    assert np.array_equal(read_at(path, begin, 3 << 20, room), values[begin:])
    assert read_at(path, 3 << 20, 100, room).size == 0


def test_tensors_of_a_header_of_odd_length_are_numbers_at_their_places(tmp_path: Path) -> None:
    tensor, path = torch.randn(600, 1000), tmp_path / "a.safetensors"
    safetensors.save_file({"weight": tensor}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    (tmp_path / "odd.safetensors").write_bytes(
        (length + 3).to_bytes(8, "little") + raw[8 : 8 + length] + b"   " + raw[8 + length :]
    )
    for name in ("a", "odd"):
        files = open_files(tmp_path / f"{name}.safetensors")
        read = files.read("weight")
        assert torch.equal(read, tensor) and read.data_ptr() % 4 == 0
        files.write("weight", read.mul_(2), tmp_path)
        assert torch.equal(files.read("weight"), 2 * tensor)
    (tmp_path / "a.safetensors").write_bytes(raw[:-5])
    with pytest.raises(CheckpointError, match="ends before the values of 'weight' do"):
        replace(files, folder=tmp_path, tensors={"weight": replace(files.tensors["weight"], file="a.safetensors")}).read("weight")


def test_memory_is_used_again_once_nobody_has_it() -> None:
    memory = Memory()
    first = memory.take(3 << 20)
    tensor, place = torch.from_numpy(first)[5:].view(torch.uint8), first.ctypes.data
    del first
    other = memory.take(3 << 20)
    assert other.ctypes.data != place  # the tensor still has it
    del tensor
    again = memory.take(3 << 20)
    assert again.ctypes.data == place
    assert pickle.loads(pickle.dumps(memory)).take(5).size == 5


class Recorded:
    """Files in memory, of one tensor a component, which note what happens to them, and on which thread."""

    def __init__(self, fail: str = "") -> None:
        self.events: list[str] = []
        self.held: set[str] = set()
        self.most = 0
        self.threads: set[str] = set()
        self._fail = fail

    def _note(self, event: str) -> None:
        """Notes an event."""
        self.events.append(event)
        self.threads.add(threading.current_thread().name)
        if event == self._fail:
            raise ValueError(event)

    def read(self, name: str) -> torch.Tensor:
        """Reads a component."""
        self.held.add(name)
        self.most = max(self.most, len(self.held))
        self._note(f"read {name}")
        return torch.zeros(1)

    def write(self, name: str, tensor: torch.Tensor, folder: Path) -> None:
        """Writes it."""
        self._note(f"write {name}")
        assert tensor.item() == 1.0
        self.held.discard(name)

    def flush(self, names: Iterator[str], folder: Path) -> None:
        """Brings it to the disk."""
        self._note(f"flush {','.join(names)}")


def turns(files: Recorded, count: int) -> Iterator[ComponentReport]:
    """Balances components, each of which adds 1 to its tensor and then takes its memory away."""

    def balance(part: Part) -> ComponentReport:
        name = str(part.index)
        tensor = part.source.read(name)
        files._note(f"balance {name}")
        tensor += 1
        part.source.write(name, tensor, Path())
        part.source.flush([name], Path())
        tensor.data = tensor.data.new_empty(0)
        return ComponentReport(part.index, (), True, 0.0, 0.0, 0.0, 0.0, 0, 0)

    parts: Any = [Part(index, None, {"weight": (str(index),)}, files, Path(), 0.0) for index in range(count)]  # type: ignore[arg-type]
    return in_turn(parts, balance)


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_a_report_comes_after_its_bytes_and_two_components_are_held_at_most(count: int) -> None:
    files, seen = Recorded(), []
    for report in turns(files, count):
        seen.append(report.index)
        assert f"flush {report.index}" in files.events
    assert seen == list(range(count)) and not files.held and files.most <= 2
    assert sorted(files.events) == sorted(f"{word} {n}" for word in ("read", "balance", "write", "flush") for n in range(count))
    assert len(files.threads) == min(count, 1) + bool(count)  # this one, and one for the disk


@pytest.mark.parametrize("word", ["read", "balance", "write", "flush"])
def test_of_an_error_all_is_told_that_was_finished_before(word: str) -> None:
    files, seen = Recorded(fail=f"{word} 2"), []
    with pytest.raises(ValueError, match=f"{word} 2"):
        for report in turns(files, 5):
            seen.append(report.index)
    assert seen == [0, 1] and "write 4" not in files.events

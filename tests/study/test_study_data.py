"""The loaders read files of the real formats, and say what is wrong with others."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from study import cli
from study.configuration import StudyError
from study.data.cifar import cifar10
from study.data.crops import centre_crop, random_crop
from study.data.idx import idx_images
from study.data.load import load_task

from ..helpers import generator
from .made_up import CIFAR_FILES, PER_FILE, cifar_content, write_binary_cifar, write_mnist, write_python_cifar


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin", "cifar-10-batches-py"])
@pytest.mark.parametrize("write", [write_binary_cifar, write_python_cifar], ids=["binary", "python"])
def test_cifar_is_read_as_it_was_written(write: object, inner: str, tmp_path: Path) -> None:
    write(tmp_path / inner)  # type: ignore[operator]
    train, test = cifar10(tmp_path)
    content = cifar_content()
    images = np.concatenate([content[name][1] for name in CIFAR_FILES[:5]]).reshape(-1, 3, 32, 32)
    assert len(train) == 5 * PER_FILE and len(test) == PER_FILE
    assert torch.equal(train.images, torch.from_numpy(images)) and train.images.dtype == torch.uint8
    assert torch.equal(test.classes, torch.from_numpy(content["test_batch"][0]).long())


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("dataset", "inner"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw"), ("mnist", "")])
def test_mnist_is_read_as_it_was_written(dataset: str, inner: str, packed: bool, tmp_path: Path) -> None:
    content = write_mnist(tmp_path / inner, packed)
    train, test = idx_images(tmp_path, "MNIST" if dataset == "mnist" else "FashionMNIST")
    assert torch.equal(train.images[:, 0], torch.from_numpy(content["train-images-idx3-ubyte"]))
    assert torch.equal(test.classes, torch.from_numpy(content["t10k-labels-idx1-ubyte"]).long())
    task = load_task(dataset, "mlp", tmp_path)
    assert task.shape == (1, 28, 28) and len(task.train) + len(task.validation) == 50 and len(task.test) == 12


def test_mnist_beside_fashion_is_not_taken_for_it(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw", packed=True)
    with pytest.raises(StudyError, match=r"no train-images-idx3-ubyte .*FashionMNIST.*--download"):
        idx_images(tmp_path, "FashionMNIST")


@pytest.mark.parametrize(
    "error", [URLError("Name or service not known"), RuntimeError("Error downloading:\nTried a mirror"), PermissionError("no")]
)
def test_a_download_that_fails_ends_with_one_line_that_says_what_to_do(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(root: str, download: bool) -> None:
        assert root == str(tmp_path) and download
        raise error

    stands_for: Any = SimpleNamespace(datasets=SimpleNamespace(MNIST=fail))
    monkeypatch.setitem(sys.modules, "torchvision", stands_for)
    line = ["mlp", "--dataset", "mnist", "--data-path", str(tmp_path), "--download"]
    assert cli.main(line) == 1
    printed = capsys.readouterr().err
    reason = " ".join(str(error).split())
    assert printed.count("\n") == 1 and f"mnist could not be downloaded ({reason}): fetch its files" in printed
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    assert cli.main(line) == 1 and "--download needs torchvision: pip install '.[vision]'" in capsys.readouterr().err


def test_cifar_parts_are_the_releases_shares_and_nothing_is_in_two(tmp_path: Path) -> None:
    write_binary_cifar(tmp_path)
    task = load_task("cifar10", "mlp", tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (82, 18, 20)  # 40,960 and 9,040 of 50,000
    rows = {tuple(image.flatten().tolist()) for part in (task.train, task.validation, task.test) for image in part.images}
    assert len(rows) == 120
    assert task.shape == (3, 32, 32) and load_task("cifar10", "conv", tmp_path).shape == (3, 28, 28)


def test_images_are_standardised(tmp_path: Path) -> None:
    write_binary_cifar(tmp_path)
    task = load_task("cifar10", "mlp", tmp_path)
    x = task.inputs(task.train.images[None])
    expected = (task.train.images[0, 1].float() / 255 - 0.4822) / 0.1994
    torch.testing.assert_close(x[0, 0, 1], expected)


def test_random_crops_are_pieces_of_the_image_and_mirror_half_of_them() -> None:
    image = torch.arange(1, 32 * 32 + 1, dtype=torch.float32).view(1, 1, 32, 32)
    padded = torch.nn.functional.pad(image[0, 0], [2] * 4)
    pieces = {}
    for top in range(9):
        for left in range(9):
            piece = padded[top : top + 28, left : left + 28]
            pieces[piece.numpy().tobytes()] = (top, left, False)
            pieces[piece.flip(1).contiguous().numpy().tobytes()] = (top, left, True)
    crops = random_crop(image.expand(400, 3, -1, -1), 28, True, generator(0))
    assert crops.shape == (400, 3, 28, 28)
    found = [pieces[crop[0].contiguous().numpy().tobytes()] for crop in crops]
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(9))
    assert 150 < sum(mirrored for _, _, mirrored in found) < 250
    assert all(torch.equal(crop[0], crop[2]) for crop in crops[:20])
    still = random_crop(image.expand(50, 1, -1, -1), 28, False, generator(0))
    assert not any(pieces[crop[0].contiguous().numpy().tobytes()][2] for crop in still)
    assert torch.equal(centre_crop(image, 28)[0, 0], image[0, 0, 2:30, 2:30])


def test_digits_are_all_there_once() -> None:
    pytest.importorskip("sklearn", reason="the extra demo brings it")
    task = load_task("digits", "mlp", Path())
    assert (len(task.train), len(task.validation), len(task.test)) == (1010, 337, 450)
    assert len(task.parts("report")[0]) == 1347 and task.parts("report")[1] is task.test
    assert task.parts("tune") == (task.train, task.validation)
    assert abs(float(task.inputs(task.parts("report")[0].images[None]).mean())) < 1e-4


class Call:
    """A pickle that would call a function when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must not run",)


def test_damaged_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StudyError, match=r"no CIFAR-10 in .*data_batch_1.bin.*--download"):
        cifar10(tmp_path)
    write_binary_cifar(tmp_path / "bin")
    (tmp_path / "bin" / "data_batch_3.bin").write_bytes(b"x" * 3000)
    with pytest.raises(StudyError, match=r"data_batch_3.bin has 3000 bytes, no multiple of 3073"):
        cifar10(tmp_path / "bin")
    write_python_cifar(tmp_path / "py")
    (tmp_path / "py" / "data_batch_2").write_bytes(pickle.dumps({b"data": Call(), b"labels": []}))
    with pytest.raises(StudyError, match=r"asks for builtins.print"):
        cifar10(tmp_path / "py")
    assert capsys.readouterr().out == ""
    write_mnist(tmp_path / "m", packed=False)
    (tmp_path / "m" / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x32abc")
    with pytest.raises(StudyError, match=r"has 3 values, but its head says \[50\]"):
        idx_images(tmp_path / "m", "MNIST")
    (tmp_path / "m" / "train-labels-idx1-ubyte").write_bytes(b"nonsense")
    with pytest.raises(StudyError, match="is no IDX file"):
        idx_images(tmp_path / "m", "MNIST")
    with pytest.raises(StudyError, match="no data set is called"):
        load_task("svhn", "mlp", tmp_path)

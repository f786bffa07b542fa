"""From the name of a data set to its task."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from ..configuration import StudyError
from .cifar import cifar10
from .digits import digits
from .idx import idx_images
from .task import Part, Task

DATASETS = ("digits", "cifar10", "mnist", "fashion-mnist")
TRAINED_ON = 40_960 / 50_000
"""The share of the training images that the release trains on; the others are for choosing rates."""

_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
}
_TORCHVISION = {"cifar10": "CIFAR10", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_CROPPED = ("conv", "resnet18")


def download(dataset: str, folder: Path) -> None:
    """Fetches a data set with torchvision.

    Raises:
        StudyError: torchvision is not there, or the files cannot be fetched or written.
    """
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise StudyError("--download needs torchvision: pip install '.[vision]'") from error
    try:
        getattr(datasets, _TORCHVISION[dataset])(str(folder), download=True)
    except (OSError, RuntimeError) as error:  # no network; a server's answer that is no data set
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StudyError(
            f"{dataset} could not be downloaded ({reason}): fetch its files where there is a network, put them into {folder}, "
            "and leave --download out"
        ) from error


@lru_cache(maxsize=2)
def load_task(dataset: str, experiment: str, folder: Path) -> Task:
    """The data of an experiment.

    Args:
        dataset: one of `DATASETS`.
        experiment: convolutional networks see crops of 28 × 28 of image files; others all pixels.
        folder: where image files lie.

    Raises:
        StudyError: there is no such data set, or its files are missing or damaged.
    """
    if dataset == "digits":
        return digits()
    if dataset not in DATASETS:
        raise StudyError(f"no data set is called {dataset!r}; there are {', '.join(DATASETS)}")
    train, test = cifar10(folder) if dataset == "cifar10" else idx_images(folder, _TORCHVISION[dataset])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    cut = round(len(train) * TRAINED_ON)
    shown, held = order[:cut], order[cut:]
    mean, deviation = _STATISTICS[dataset]
    cropped = experiment in _CROPPED
    return Task(
        Part(train.images[shown], train.classes[shown]),
        Part(train.images[held], train.classes[held]),
        test,
        mean,
        deviation,
        crop=28 if cropped and dataset == "cifar10" else 0,
        flip=cropped,
    )

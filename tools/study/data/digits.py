"""Scikit-learn's 1797 digits of 8 × 8: no file, no network."""

from __future__ import annotations

import torch

from ..configuration import StudyError
from .task import Part, Task


def digits() -> Task:
    """1010 images to train on, 337 to choose rates by, 450 to test on, drawn once with every class in its share.

    Raises:
        StudyError: scikit-learn is not there.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise StudyError("the digits come with scikit-learn: pip install '.[demo]'") from error
    images, classes = load_digits(return_X_y=True)
    rest, test, rest_classes, test_classes = train_test_split(images, classes, stratify=classes, random_state=0)
    train, held, train_classes, held_classes = train_test_split(rest, rest_classes, stratify=rest_classes, random_state=0)

    def part(x: object, y: object) -> Part:
        return Part(torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 8, 8), torch.as_tensor(y, dtype=torch.int64))

    return Task(
        part(train, train_classes),
        part(held, held_classes),
        part(test, test_classes),
        mean=(float(rest.mean()),),
        deviation=(float(rest.std()),),
    )

"""The gradients that follow a prepared step: each backward pass may put new tensors in the places of the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from ...kernels.memory import has_plain_memory
from ...kernels.program import ScaleTarget

__all__ = ["Exchange", "FollowedGradients"]

Exchange = tuple[int, ScaleTarget]
"""The place of a target, and what stands there from now on."""


class FollowedGradients:
    """Gradients among the targets of a step, as they were when it was prepared.

    Args:
        owners: all tensors whose gradients follow where they have some.
        targets: all that is multiplied, gradients included.
        read: what is read beside it.
    """

    def __init__(self, owners: Sequence[Tensor], targets: Sequence[ScaleTarget], read: Sequence[Tensor]) -> None:
        self._owners = list(owners)
        self._known = [owner.grad for owner in owners]
        gradients = {id(gradient) for gradient in self._known if gradient is not None}
        self._places = {id(target.tensor): place for place, target in enumerate(targets) if id(target.tensor) in gradients}
        others = [target.tensor for target in targets if id(target.tensor) not in gradients]
        self._spans = np.unique(_spans([*others, *read]), axis=0)

    @property
    def count(self) -> int:
        """The number of targets that are gradients."""
        return len(self._places)

    def are_same(self) -> bool:
        """Whether every tensor has the gradient that it had."""
        return all(owner.grad is known for owner, known in zip(self._owners, self._known, strict=True))

    def exchanged(self, targets: Sequence[ScaleTarget]) -> list[Exchange] | None:
        """Takes the gradients of now; None where they are not what the last were: then all has to be looked up anew.

        They have to lie in memory in the same order, and to share none of it with anything else.

        Args:
            targets: all that is multiplied, with the last gradients.
        """
        found: list[Exchange] = []
        for owner, known in zip(self._owners, self._known, strict=True):
            gradient = owner.grad
            if gradient is known:
                continue
            if gradient is None or known is None or not _alike(gradient, known) or id(known) not in self._places:
                return None
            place = self._places[id(known)]
            found.append((place, replace(targets[place], tensor=gradient)))
        now = [owner.grad for owner in self._owners]
        spans = np.concatenate([self._spans, _spans([one for one in now if one is not None])])
        spans = spans[np.argsort(spans[:, 0], kind="stable")]
        if bool((np.maximum.accumulate(spans[:, 1])[:-1] > spans[1:, 0]).any()):
            return None
        places = {id(target.tensor): place for place, target in found}
        kept = {id(one) for one in now}
        self._places = {**{key: place for key, place in self._places.items() if key in kept}, **places}
        self._known = now
        return found


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients look the same to code that reads and writes them by address."""
    return (
        has_plain_memory(one)
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
        and one.is_inference() == other.is_inference()
    )


def _spans(tensors: Sequence[Tensor]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Returns (tensors, 2) the first byte of each, and the one behind its last."""
    return np.array(list(_ends(tensors)), dtype=np.int64).reshape(-1, 2)


def _ends(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Yields first byte and end of each tensor that has memory."""
    for tensor in tensors:
        if tensor.numel() and has_plain_memory(tensor):
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            yield start, start + (last + 1) * tensor.element_size()

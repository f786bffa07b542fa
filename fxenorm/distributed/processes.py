"""The processes that share one model: one, for which every question answers itself, or many."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["OneProcess", "Processes"]

T = TypeVar("T")


class Processes(abc.ABC):
    """The questions to the processes over which a model is spread.

    All of them have to ask the same questions in the same order: each is a collective, and gives every process the same bits.

    Attributes:
        members: global ranks of all processes, in a fixed order.
        first_rank, rank: of the first of them, and of this one.
        size: how many they are.
        device: where collectives take their tensors.
        holds_all: whether each process has all of the model.
    """

    holds_all: bool
    members: tuple[int, ...]
    first_rank: int
    rank: int
    size: int
    device: torch.device

    @abc.abstractmethod
    def largest(self, values: Tensor) -> Tensor:
        """Returns the largest of each entry over all processes."""

    @abc.abstractmethod
    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of each entry over all processes."""

    @abc.abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Returns a small object of every process, in the same order everywhere."""

    @abc.abstractmethod
    def gather_made(self, make: Callable[[], T]) -> list[T]:
        """Gathers the value that a function returns on each process; where it raises on one, all raise."""

    @abc.abstractmethod
    def tell(self, error: BaseException | None, message: str) -> None:
        """Raises on every process where any has an error: its own there, and an AgreementError on the others."""


class OneProcess(Processes):
    """The only process of a model."""

    holds_all = True

    def __init__(self) -> None:
        self.members, self.first_rank, self.rank, self.size = (0,), 0, 0, 1
        self.device = torch.device("cpu")

    def largest(self, values: Tensor) -> Tensor:
        """Returns the values: there are no others."""
        return values

    def total(self, values: Tensor) -> Tensor:
        """Returns the values: there are no others."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """Returns a list of this object alone."""
        return [value]

    def gather_made(self, make: Callable[[], T]) -> list[T]:
        """Returns a list of the function's value alone."""
        return [make()]

    def tell(self, error: BaseException | None, message: str) -> None:
        """Raises the error, if there is one."""
        if error is not None:
            raise error

"""Executors by name: what reads the weights into channel sums and writes the scales back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import OptionError
from .program import ChannelSums, ReduceProgram, ScaleTarget
from .writes import Write

__all__ = ["Backend", "get_backend", "register_backend"]


class Backend(Protocol):
    """An executor. None of its methods may wait for the device.

    Attributes:
        name: as in ``analyze(backend=...)``.
    """

    name: str

    def matrices(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> list[Tensor]:
        """Reads the weights once: everything that `sums` and `energies` need for any number of log-scales."""

    def sums(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> ChannelSums:
        """N and P of the weights as they would be after a rescaling by `log_scales`."""

    def contributions(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> Tensor:
        """(slots,) the logarithms of the channel sums of each tensor by itself, in the order of ``program.slots``."""

    def reduce(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> ChannelSums:
        """N and P of the weights as they are; what one cycle needs."""

    def energies(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> Tensor:
        """(blocks,) log of each tensor's sum of |w|^p (of the largest |w| for p = inf), without layer weights."""

    def apply(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """Multiplies every target in place."""

    def writes(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> list[Write]:
        """The writes of `apply`, for `carry_out`; nothing is written yet."""

    def rooms(self, targets: Sequence[ScaleTarget], num_scales: int, device: torch.device) -> Tensor:
        """(2, K) >= 0, how far each variable can go up and down, natural logarithms: no entry leaves its type's range then.

        Also where others go less far; see `Keep` for what else is kept.
        """

    def leaving(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """(K,) bool: variables that move an entry out of its room; where there are none, `log_scales` do no harm."""

    def rounded(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> int:
        """How many entries of targets with `Keep.DIGITS` lose digits; waits for the device."""

    def overflowing(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """(K,) bool: variables that make an entry overflow; where there are none, `log_scales` make nothing infinite."""


_BACKENDS: dict[str, Callable[[], Backend]] = {}


def register_backend(name: str, factory: Callable[[], Backend], *, replace: bool = False) -> None:
    """Makes an executor known; called while its module is imported.

    Args:
        name: as `get_backend` takes it.
        factory: returns the executor, or raises an OptionError where it does not work here.
        replace: whether it may take the place of another of that name.

    Raises:
        OptionError: the name is taken.
    """
    if name in _BACKENDS and not replace:
        raise OptionError(f"there is an executor {name!r} already")
    _BACKENDS[name] = factory


def get_backend(name: str) -> Backend:
    """The executor of that name.

    Args:
        name: "eager"; "compiled" for CPUs and "triton" for GPUs, which hand what they cannot do to "eager"; "auto" takes
            "compiled" where there is a compiler, and else "eager" and says so once.

    Raises:
        OptionError: there is no executor of that name, or it does not work here.

    Example:
        >>> get_backend("eager").name
        'eager'
    """
    factory = _BACKENDS.get(name)
    if factory is None:
        raise OptionError(f"backend={name!r} is not a valid option: expected one of {sorted(_BACKENDS)}")
    return factory()

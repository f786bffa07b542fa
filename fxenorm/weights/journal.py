"""Keeps writes that could be neither finished nor undone, or that other processes have done, until the next call does them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..distributed.dtensors import local_part, memory_of
from ..errors import RescaleError
from ..kernels.program import ScaleTarget
from ..kernels.writes import Unfinished, Write, carry_out, versions

__all__ = ["Journal"]

Stamp = tuple[str, list[Tensor], Any, list[int]]
"""A tensor's name, itself with the tensor it is a part of, its address, and the number of writes that each of them counts."""


_TORN = "fxenorm: the model is half rescaled. The next call on this plan, or plan.repair(), finishes it"
_BEHIND = "fxenorm: other processes have rescaled. The next call on this plan, or plan.repair(), does it here too"


class Journal:
    """Holds the writes that an error has interrupted and nobody could make good at once; empty at all other times.

    It then holds the writes with their factors, which of them have happened, and the address and version of each tensor. Where
    other processes have rescaled and this one has not come to its writes, it holds a function that makes up for that.
    """

    def __init__(self) -> None:
        self._left: Unfinished | None = None
        self._stamps: list[Stamp] = []
        self._missed: Callable[[], None] | None = None
        self._is_promised = False
        self._owners: dict[int, Tensor] = {}

    @property
    def is_open(self) -> bool:
        """Whether something is left to do."""
        return self._left is not None or self._missed is not None

    def carry_out(self, writes: Sequence[Write]) -> None:
        """Does all of the writes, or none of them; see `fxenorm.kernels.writes.carry_out`."""
        with self.kept():
            carry_out(writes, owed=self._is_promised)

    @contextmanager
    def promised(self, again: Callable[[], None], targets: Sequence[ScaleTarget]) -> Iterator[None]:
        """Runs a rescaling that other processes make too; where an error ends it here, the next call makes up for it.

        Args:
            again: makes the same rescaling from the same weights, and asks no other process.
            targets: the tensors that it writes.
        """
        self._is_promised = True
        self._owners = {id(target.tensor): target.owner for target in targets if target.owner is not None}
        try:
            yield
        except BaseException as error:
            if self._left is None and not getattr(error, "carried_out", False):
                self._missed, self._stamps = again, [self._stamp(target.name, target.tensor) for target in targets]
                say = getattr(error, "add_note", lambda _: None)  # Python 3.11
                say(_BEHIND)
            raise
        finally:
            self._is_promised, self._owners = False, {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Runs its body, and keeps the writes that an error inside leaves unfinished."""
        try:
            yield
        except BaseException as error:
            left = getattr(error, "unfinished", None)
            if left is not None:
                self._open(left)
                say = getattr(error, "add_note", lambda _: None)  # Python 3.11
                say(_TORN if any(write.written for write in left) else _BEHIND)
            raise

    def repair(self, current: Mapping[str, Tensor]) -> None:
        """Finishes the writes that are left; tensors that were written or replaced since stay as they are.

        Args:
            current: the model's tensors by name, as they are now.

        Raises:
            RescaleError: some were written by others since, and it cannot be known whether they are rescaled: they are named,
                and the journal is closed; or finishing fails again, and it stays.
        """
        if self._missed is not None:
            self._make_up(self._missed, current)
        if self._left is None:
            return
        strange = {stamp[0] for stamp in self._stamps if _is_strange(stamp, current)}
        own = [write for write in self._left if not strange.intersection(write.names)]
        try:
            carry_out([_Onwards(write) for write in own])
        except Exception as error:
            self._open(self._left)
            raise RescaleError(f"the model is half rescaled, and finishing it failed again: {error}") from error
        skipped = sorted(strange | {name for write in self._left if write not in own for name in write.names})
        self._left, self._stamps = None, []
        if strange:
            raise RescaleError(
                "an earlier call was interrupted, and these were written or replaced before it could be finished: "
                f"{_named(skipped)}. They were left as they are, and all others are rescaled: load all of the model and its "
                "optimizer from a checkpoint"
            )

    def _make_up(self, missed: Callable[[], None], current: Mapping[str, Tensor]) -> None:
        """Rescales as the other processes have done, unless something was written since."""
        strange = sorted({stamp[0] for stamp in self._stamps if _is_strange(stamp, current)})
        self._missed = None
        if strange:
            self._stamps = []
            raise RescaleError(
                "an error has kept this process from a rescaling that the others have made, and these were written or replaced "
                f"since: {_named(strange)}. Load all of the model and its optimizer from a checkpoint, on every process"
            )
        try:
            missed()
        except Exception as error:
            if self._left is None:
                self._missed = missed
            raise RescaleError(f"the other processes have rescaled, and doing it here failed again: {error}") from error

    def _open(self, left: Unfinished) -> None:
        """Keeps the writes that are left, and a stamp of each of their tensors."""
        tensors = {(name, id(tensor)): tensor for write in left for name, tensor in zip(write.names, write.tensors, strict=True)}
        self._left = left
        self._stamps = [self._stamp(name, tensor) for (name, _), tensor in tensors.items()]

    def _stamp(self, name: str, tensor: Tensor) -> Stamp:
        """Returns a tensor's name, address and number of writes, by which a later write is noticed."""
        owner = self._owners.get(id(tensor))
        tensors = [tensor] if owner is None else [tensor, owner]
        return name, tensors, memory_of(tensor), versions(tensors)


def _is_strange(stamp: Stamp, current: Mapping[str, Tensor]) -> bool:
    """Whether a tensor has been written, or has given its place to another, since."""
    name, tensors, place, count = stamp
    if memory_of(tensors[0]) != place or versions(tensors) != count:
        return True
    return name in current and memory_of(local_part(current[name])) != place


def _named(names: Sequence[str]) -> str:
    """Returns the first ten of some names, and the number of the others."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


class _Onwards(Write):
    """Finishes a write and never undoes it: entries that are written already stay so."""

    def __init__(self, write: Write) -> None:
        super().__init__(write.names, ())
        self._write, self.written = write, write.written

    def run(self) -> None:
        """Finishes the write that it wraps."""
        self._write.run()
        self.written = True

    def undo(self) -> None:
        """Leaves everything as it is: entries that are written stay so."""

    def forward(self) -> None:
        """Finishes the write that it wraps."""

    def backward(self) -> None:
        """Leaves everything as it is: entries that are written stay so."""

"""What is left of writes that could neither be finished nor undone, kept until the next call finishes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..distributed.dtensors import local_part, memory_of
from ..errors import RescaleError
from ..kernels.writes import Unfinished, Write, carry_out, versions

__all__ = ["Journal"]


class Journal:
    """Empty, but for the time after an error in the middle of writes that could not be made good at once.

    It then holds the writes with their factors, which of them have happened, and the address and version of each tensor.
    """

    def __init__(self) -> None:
        self._left: Unfinished | None = None
        self._stamps: list[tuple[str, Tensor, Any, list[int]]] = []

    @property
    def is_open(self) -> bool:
        """Whether something is left to do."""
        return self._left is not None

    def carry_out(self, writes: Sequence[Write]) -> None:
        """Does all of the writes, or none of them; see `fxenorm.kernels.writes.carry_out`."""
        with self.kept():
            carry_out(writes)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps what an error inside leaves unfinished."""
        try:
            yield
        except BaseException as error:
            left = getattr(error, "unfinished", None)
            if left is not None:
                self._open(left)
                say = getattr(error, "add_note", lambda _: None)  # Python 3.11
                say("fxenorm: the model is half rescaled. The next call on this plan, or plan.repair(), finishes it")
            raise

    def repair(self, current: Mapping[str, Tensor]) -> None:
        """Finishes what is left; tensors that were written or replaced since stay as they are.

        Args:
            current: the model's tensors by name, as they are now.

        Raises:
            RescaleError: some were written by others since, and it cannot be known whether they are rescaled: they are named,
                and the journal is closed; or finishing fails again, and it stays.
        """
        if self._left is None:
            return
        strange = {name for name, tensor, place, count in self._stamps if self._is_strange(name, tensor, place, count, current)}
        own = [write for write in self._left if not strange.intersection(write.names)]
        try:
            carry_out([_Onwards(write) for write in own])
        except Exception as error:
            self._open(self._left)
            raise RescaleError(f"the model is half rescaled, and finishing it failed again: {error}") from error
        skipped = sorted(strange | {name for write in self._left if write not in own for name in write.names})
        self._left, self._stamps = None, []
        if strange:
            shown = ", ".join(skipped[:10]) + (f" and {len(skipped) - 10} more" if len(skipped) > 10 else "")
            raise RescaleError(
                f"an earlier call was interrupted, and these were written or replaced before it could be finished: {shown}. They "
                "were left as they are, and all others are rescaled: load all of the model and its optimizer from a checkpoint"
            )

    def _open(self, left: Unfinished) -> None:
        """Notes what is left, and how each tensor is now."""
        tensors = {(name, id(tensor)): tensor for write in left for name, tensor in zip(write.names, write.tensors, strict=True)}
        self._left = left
        self._stamps = [(name, tensor, memory_of(tensor), versions([tensor])) for (name, _), tensor in tensors.items()]

    def _is_strange(self, name: str, tensor: Tensor, place: Any, count: list[int], current: Mapping[str, Tensor]) -> bool:
        """Whether a tensor has been written, or has given its place to another, since."""
        if memory_of(tensor) != place or versions([tensor]) != count:
            return True
        return name in current and memory_of(local_part(current[name])) != place


class _Onwards(Write):
    """A write that is only ever finished: what had happened before stays."""

    def __init__(self, write: Write) -> None:
        super().__init__(write.names, ())
        self._write, self.written = write, write.written

    def run(self) -> None:
        """Finishes it."""
        self._write.run()
        self.written = True

    def undo(self) -> None:
        """Leaves it."""

    def forward(self) -> None:
        """Finishes it."""

    def backward(self) -> None:
        """Leaves it."""

"""Components one after the other: while one is balanced, the next is read and the last is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .journal import ComponentReport
from .part import Part

__all__ = ["in_turn"]


def in_turn(parts: Sequence[Part], balance: Callable[[Part], ComponentReport]) -> Iterator[ComponentReport]:
    """Balances components in their order; no more than two of them are in memory at once.

    Args:
        parts: the components.
        balance: reads one by its `Part.source`, balances it and writes it there.

    Yields:
        Each report once the bytes are written.
    """
    disk = ThreadPoolExecutor(1, thread_name_prefix="fxenorm-checkpoint")
    written: Callable[[], ComponentReport] | None = None
    try:
        beside = [_Beside(part, disk) for part in parts]
        for number, own in enumerate(beside):
            for other in beside[number : number + 2]:
                other.begin()
            try:
                report = balance(replace(own.part, source=own))
            except Exception:
                if written is not None:
                    yield written()
                raise
            if written is not None:
                yield written()
            written = own.written(report)
        if written is not None:
            yield written()
    finally:
        disk.shutdown(cancel_futures=True)


class _Beside:
    """The tensors of one component, read and written by another thread, in the order in which that is asked for.

    Args:
        part: the component.
        disk: the thread.
    """

    def __init__(self, part: Part, disk: ThreadPoolExecutor) -> None:
        self.part = part
        self._disk = disk
        self._read: dict[str, Future[Tensor]] | None = None
        self._written: list[Future[None]] = []

    def begin(self) -> None:
        """Begins to read all tensors, if that has not begun."""
        if self._read is None:
            names = [names[0] for names in self.part.stored.values()]
            self._read = {name: self._disk.submit(self.part.source.read, name) for name in names}

    def read(self, name: str) -> Tensor:
        """Returns one tensor, once; waits until it is read."""
        assert self._read is not None
        return self._read.pop(name).result()

    def write(self, name: str, tensor: Tensor, folder: Path) -> None:
        """Has a tensor written, which is not to be changed any more."""
        self._written.append(self._disk.submit(self.part.source.write, name, tensor.detach(), folder))

    def flush(self, names: Iterable[str], folder: Path) -> None:
        """Has the files brought to the disk, once all is written."""
        self._written.append(self._disk.submit(self.part.source.flush, names, folder))

    def written(self, report: ComponentReport) -> Callable[[], ComponentReport]:
        """Returns a function that waits until all is written, and returns the report."""

        def wait() -> ComponentReport:
            """Waits."""
            for one in self._written:
                one.result()
            return report

        return wait

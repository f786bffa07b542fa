"""The processes of torch.distributed that share the components of one checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..distributed.ranks import Ranks, replica_ranks
from ..errors import CheckpointError, OptionError

__all__ = ["Sharing", "sharing_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class Sharing:
    """The processes that work on one checkpoint together; they see the same files.

    Attributes:
        ranks: all of them; None: this one is alone.
    """

    ranks: Ranks | None

    @property
    def place(self) -> int:
        """The number of this process among them."""
        return 0 if self.ranks is None else self.ranks.place

    @property
    def size(self) -> int:
        """The number of processes that share the work."""
        return 1 if self.ranks is None else self.ranks.size

    def own(self, sizes: Sequence[int]) -> list[int]:
        """Returns which pieces of work are this process's: the largest first, each to the one that has least so far.

        Args:
            sizes: of all pieces; the same on every process.
        """
        loads, found = [0] * self.size, []
        for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
            place = loads.index(min(loads))
            loads[place] += sizes[piece]
            if place == self.place:
                found.append(piece)
        return sorted(found)

    def gathered(self, make: Callable[[], T]) -> list[T]:
        """Gathers the value that a function returns on each process; where it raises on one, all raise.

        Raises:
            CheckpointError: it raises on another process.
        """
        if self.ranks is None:
            return [make()]
        error: BaseException | None = None
        own: list[T] = []
        try:
            own = [make()]
        except BaseException as raised:  # the others wait to hear of it
            error = raised
        found: list[list[T]] = self.ranks.gather(own)
        if error is not None:
            raise error
        failed = [str(rank) for rank, part in zip(self.ranks.members, found, strict=True) if not part]
        if failed:
            raise CheckpointError(
                f"another process (rank {', '.join(failed)}) met an error, and its own message says which: nothing was put in "
                "place; what is finished is kept, and the same call goes on from there"
            )
        return [part[0] for part in found]

    def first(self, make: Callable[[], T]) -> T:
        """Returns on every process what a function returns on the first one, which alone calls it; raises as `gathered`."""
        return self.gathered(lambda: [make()] if self.place == 0 else [])[0][0]


def sharing_of(process_group: Any) -> Sharing:
    """Returns the processes of a group; None: this one is alone.

    Raises:
        OptionError: it is no process group of torch.distributed, or this process is no part of it.
    """
    if process_group is None:
        return Sharing(None)
    try:
        ranks = replica_ranks(process_group, torch.device("cpu"))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise OptionError(
            f"process_group={process_group!r} is not a valid option: expected a process group of torch.distributed that this "
            f"process belongs to ({error})"
        ) from error
    return Sharing(ranks)

"""The processes over which a model's tensors are spread, and the few things that they tell one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import AgreementError, RescaleError
from .dtensors import is_distributed
from .processes import Processes

__all__ = ["LINEAR_UP_TO", "Ranks", "ranks_of", "replica_ranks"]

T = TypeVar("T")

LINEAR_UP_TO = 4.0
"""Up to this p, sums of |w|^p travel themselves; beyond it their logarithms do. The least number of float32, 1.4e-45, has a
fourth power of 4e-180, within the range of float64 (2e-308), and so has its largest; both would be up to p = 6.8."""


class Ranks(Processes):
    """The processes of one mesh, in a fixed order.

    Args:
        groups: one process group that holds all of them, or one for each axis of their mesh.
        places: by group, this process's place in it and its size.
        members: global ranks of all processes.
        rank: this process's global rank.
        device: where collectives take their tensors.
    """

    is_alone = False

    def __init__(
        self, groups: list[Any], places: list[tuple[int, int]], members: list[int], rank: int, device: torch.device
    ) -> None:
        self._groups, self._places = groups, places
        self.members, self.first_rank, self.rank, self.device = tuple(members), members[0], rank, device
        self.size = math.prod(size for _, size in places)
        self.place = 0
        for place, size in places:
            self.place = self.place * size + place

    def combined(
        self, logs: Tensor, p: float, reference: Tensor | None = None, notes: Tensor | None = None, least: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Adds up (p = inf: takes the largest of) the sums of all processes; one collective a process group.

        Every process gets the same bits.

        Args:
            logs: (n,) logarithms of this process's sums.
            p: the norm's exponent.
            reference: (n,) finite, the same everywhere: logarithms of the rough size of the results, so that none leaves the
                range of numbers on the way; None: 0.
            notes: (m,) finite numbers >= 0 that every process is told too; they travel in front, and mean the same to a process
                that adds up and to one that takes the largest.
            least: how many numbers travel behind the notes at least, so that processes which differ in n still understand
                one another.

        Returns:
            (n,) logarithms of the results, on the device of `logs`, and (size, m) the notes of all processes.
        """
        board = self._board(logs.new_zeros(0) if notes is None else notes.to(logs))
        n, head, linear = logs.numel(), board.numel(), p <= LINEAR_UP_TO
        if math.isinf(p):
            # The MAX of NaN depends on the order; NaN and infinity both mean that a weight is not finite.
            values = torch.where(logs.isnan(), math.inf, logs)
        elif linear:
            values = (logs if reference is None else logs - reference).exp()
        else:
            values = logs
        sent = torch.cat([board.reshape(-1), values, logs.new_zeros(max(least - n, 0))]).to(self.device)
        if math.isinf(p) or linear:
            self._reduce(sent, "MAX" if math.isinf(p) else "SUM")
        else:
            sent = self._gathered(sent, head)
        values, board = sent[head : head + n].to(logs.device), sent[:head].to(logs.device).reshape(board.shape)
        if linear:
            values = values.log() if reference is None else values.log() + reference
        return values, board

    def told(self, notes: Tensor) -> Tensor:
        """(size, m) the notes of all processes, (m,) finite numbers each; one collective a process group."""
        sent = self._board(notes).to(self.device)
        self._reduce(sent, "SUM")
        return sent.to(notes.device)

    def _board(self, notes: Tensor) -> Tensor:
        """(size, m) zeros, but for this process's own row."""
        board = notes.new_zeros((self.size, notes.numel()))
        board[self.place] = notes
        return board

    def largest(self, values: Tensor) -> Tensor:
        """Returns the largest of each entry over all processes."""
        sent = values.to(self.device, copy=True)
        self._reduce(sent, "MAX")
        return sent.to(values.device)

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of each entry over all processes."""
        sent = values.to(self.device, copy=True)
        self._reduce(sent, "SUM")
        return sent.to(values.device)

    def total_with(self, values: Tensor, notes: Tensor, least: int) -> tuple[Tensor, Tensor]:
        """Returns `total` and `told` of one collective.

        Args:
            values, notes: of one type.
            least: how many values travel at least; see `combined`.

        Returns:
            The sums, and (size, m) the notes of all processes.
        """
        board = self._board(notes.to(values))
        padding = values.new_zeros(max(least - values.numel(), 0))
        sent = torch.cat([board.reshape(-1), values, padding]).to(self.device)
        self._reduce(sent, "SUM")
        sums = sent[board.numel() : board.numel() + values.numel()]
        return sums.to(values.device), sent[: board.numel()].to(values.device).reshape(board.shape)

    def gather(self, value: Any) -> list[Any]:
        """Gathers a small object of every process, in the same order everywhere."""
        import torch.distributed as dist

        found = [value]
        for group, (_, size) in zip(self._groups, self._places, strict=True):
            lists: list[Any] = [None] * size
            dist.all_gather_object(lists, found, group=group)
            found = [member for part in lists for member in part]
        return found

    def gather_made(self, make: Callable[[], T]) -> list[T]:
        """Gathers the value that a function returns on each process; where it raises on one, all raise.

        Raises:
            AgreementError: it raises on another process.
        """
        error: BaseException | None = None
        own: list[T] = []
        try:
            own = [make()]
        except BaseException as raised:  # whatever it is, the others wait
            error = raised
        found = self.gather(own)
        if error is not None:
            raise error
        failed = [str(rank) for rank, part in zip(self.members, found, strict=True) if not part]
        if failed:
            raise AgreementError(f"another process (rank {', '.join(failed)}) could not take part: nothing was rescaled on any")
        return [part[0] for part in found]

    def tell(self, error: BaseException | None, message: str) -> None:
        """Raises on every process where any has an error: its own there, and an AgreementError on the others.

        Args:
            error: this process's; None: it has none.
            message: for the others; {} in it stands for the ranks.
        """
        flags = torch.tensor([float(error is not None)], dtype=torch.float32, device=self.device)
        failed = self.told(flags).reshape(-1).tolist()
        if error is not None:
            raise error
        if any(failed):
            ranks = ", ".join(str(rank) for rank, flag in zip(self.members, failed, strict=True) if flag)
            raise AgreementError(message.format(ranks))

    def _reduce(self, sent: Tensor, operation: str) -> None:
        """All-reduces a tensor in place, over one process group after the other."""
        import torch.distributed as dist

        for group in self._groups:
            dist.all_reduce(sent, getattr(dist.ReduceOp, operation), group=group)

    def _gathered(self, sent: Tensor, head: int) -> Tensor:
        """Returns the first entries added as they are, the others as logarithms."""
        import torch.distributed as dist

        for group, (_, size) in zip(self._groups, self._places, strict=True):
            found = sent.new_empty(size * sent.numel())
            dist.all_gather_into_tensor(found, sent, group=group)
            parts = found.reshape(size, -1)
            sent = torch.cat([parts[:, :head].sum(0), parts[:, head:].logsumexp(0)])
        return sent


def ranks_of(tensors: Iterable[Tensor]) -> Ranks | None:
    """Returns the processes over which tensors are spread, those of the widest mesh; None where none is a DTensor.

    Raises:
        RescaleError: no mesh contains all others, or this process is in none.
    """
    meshes: dict[Any, Any] = {}
    for tensor in tensors:
        if is_distributed(tensor):
            held: Any = tensor
            meshes.setdefault(id(held.device_mesh), held.device_mesh)
    if not meshes:
        return None
    import torch.distributed as dist

    ordered = sorted(meshes.values(), key=lambda mesh: -int(mesh.size()))
    widest = ordered[0]
    members: list[int] = widest.mesh.reshape(-1).tolist()
    for mesh in ordered[1:]:
        if not set(mesh.mesh.reshape(-1).tolist()) <= set(members):
            raise RescaleError(
                f"the model's parameters lie on meshes of which none contains the others: ranks {members} and "
                f"{mesh.mesh.reshape(-1).tolist()}. One rescaling has to be agreed upon by all of them: place every parameter on "
                "one mesh, or on parts of it that are sliced by name, with at least one parameter on all of its axes"
            )
    rank = dist.get_rank()
    if rank not in members:
        raise RescaleError(f"this process (rank {rank}) is no part of the mesh of the model's parameters, ranks {members}")
    if widest.device_type == "cpu":
        device = torch.device("cpu")
    else:
        device = torch.device(widest.device_type, torch.get_device_module(widest.device_type).current_device())
    if widest.ndim == 1:
        groups = [widest.get_group()]
    elif len(members) == dist.get_world_size():
        groups = [dist.group.WORLD]
    else:
        groups = [widest.get_group(axis) for axis in range(widest.ndim)]
    places = [(dist.get_rank(group), dist.get_world_size(group)) for group in groups]
    return Ranks(groups, places, members, rank, device)


def replica_ranks(group: Any, device: torch.device) -> Ranks:
    """Returns the processes of a group, each of which has all of the model.

    Args:
        group: the process group.
        device: where the model is, and collectives take their tensors.
    """
    import torch.distributed as dist

    members = dist.get_process_group_ranks(group)
    place = (dist.get_rank(group), dist.get_world_size(group))
    return Ranks([group], [place], members, dist.get_rank(), device)

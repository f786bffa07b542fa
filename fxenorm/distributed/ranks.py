"""The processes over which a model's tensors are spread, and the few things that they tell one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import FxenormError, RescaleError
from .dtensors import is_distributed

__all__ = ["ELSEWHERE", "Ranks", "ranks_of", "together"]

LINEAR_UP_TO = 8.0
"""Up to this p, sums of |w|^p of what a float64 should hold are in its range themselves; beyond it logarithms travel."""

ELSEWHERE = "another process could not take part, so nothing was rescaled on any; its own message says why"


class Ranks:
    """The processes of one mesh, in a fixed order.

    Args:
        groups: one process group that holds all of them, or one for each axis of their mesh.
        places: by group, this process's place in it and its size.
        members: global ranks of all processes.
        rank: this process's global rank.
        device: where collectives take their tensors.
    """

    def __init__(
        self, groups: list[Any], places: list[tuple[int, int]], members: list[int], rank: int, device: torch.device
    ) -> None:
        self._groups, self._places = groups, places
        self.first_rank, self.rank, self.device = members[0], rank, device
        self.size = math.prod(size for _, size in places)
        self.place = 0
        for place, size in places:
            self.place = self.place * size + place

    def combined(
        self, logs: Tensor, p: float, reference: Tensor | None = None, notes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Adds up (p = inf: takes the largest of) what every process has summed; one collective a process group.

        Every process gets the same bits.

        Args:
            logs: (n,) logarithms of this process's sums.
            p: the norm's exponent.
            reference: (n,) finite, the same everywhere: logarithms of the rough size of the results, so that none leaves the
                range of numbers on the way; None: 0.
            notes: (m,) finite numbers that every process is told too.

        Returns:
            (n,) logarithms of the results, on the device of `logs`, and (size, m) the notes of all processes.
        """
        notes = logs.new_zeros(0) if notes is None else notes.to(logs)
        fill, operation = (-math.inf, "MAX") if math.isinf(p) else (0.0, "SUM")
        board = logs.new_full((self.size, notes.numel()), fill)
        board[self.place] = notes
        n, linear = logs.numel(), p <= LINEAR_UP_TO
        if math.isinf(p):
            # What MAX makes of NaN depends on the order; both mean that a weight is not finite.
            values = torch.where(logs.isnan(), math.inf, logs)
        elif linear:
            values = (logs if reference is None else logs - reference).exp()
        else:
            values = logs
        sent = torch.cat([values, board.reshape(-1)]).to(self.device)
        if math.isinf(p) or linear:
            self._reduce(sent, operation)
        else:
            sent = self._gathered(sent, n)
        values, board = sent[:n].to(logs.device), sent[n:].to(logs.device).reshape(board.shape)
        if linear:
            values = values.log() if reference is None else values.log() + reference
        return values, board

    def largest(self, values: Tensor) -> Tensor:
        """The largest of each entry over all processes."""
        sent = values.to(self.device, copy=True)
        self._reduce(sent, "MAX")
        return sent.to(values.device)

    def total(self, values: Tensor) -> Tensor:
        """The sum of each entry over all processes."""
        sent = values.to(self.device, copy=True)
        self._reduce(sent, "SUM")
        return sent.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """A small object of every process, in the same order everywhere."""
        import torch.distributed as dist

        found = [value]
        for group, (_, size) in zip(self._groups, self._places, strict=True):
            lists: list[Any] = [None] * size
            dist.all_gather_object(lists, found, group=group)
            found = [member for part in lists for member in part]
        return found

    def agree(self, error: Exception | None) -> None:
        """Raises on every process where any has an error: its own there, and a RescaleError on the others."""
        flag = torch.tensor([0.0 if error is None else 1.0], dtype=torch.float32, device="cpu")
        raised = bool(self.largest(flag))
        if error is not None:
            raise error
        if raised:
            raise RescaleError(ELSEWHERE)

    def _reduce(self, sent: Tensor, operation: str) -> None:
        """All-reduces in place."""
        import torch.distributed as dist

        for group in self._groups:
            dist.all_reduce(sent, getattr(dist.ReduceOp, operation), group=group)

    def _gathered(self, sent: Tensor, n: int) -> Tensor:
        """The first n entries added as logarithms, the others as they are."""
        import torch.distributed as dist

        for group, (_, size) in zip(self._groups, self._places, strict=True):
            found = sent.new_empty(size * sent.numel())
            dist.all_gather_into_tensor(found, sent, group=group)
            parts = found.reshape(size, -1)
            sent = torch.cat([parts[:, :n].logsumexp(0), parts[:, n:].sum(0)])
        return sent


def ranks_of(tensors: Iterable[Tensor]) -> Ranks | None:
    """The processes over which tensors are spread: those of the mesh that contains all others; None where none is a DTensor.

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


@contextmanager
def together(ranks: Ranks | None) -> Iterator[None]:
    """What fails inside on one process fails on all of them; None: there is only this one."""
    error: FxenormError | None = None
    try:
        yield
    except FxenormError as found:
        error = found
    if ranks is not None:
        ranks.agree(error)
    elif error is not None:
        raise error

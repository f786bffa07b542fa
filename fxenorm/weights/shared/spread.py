"""Says which part of a model each process holds (fully_shard, tensor parallel), and tells the others its sums.

Each process reads and multiplies its part, and the processes tell one another sums by channel. Nobody ever holds
the whole of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...analysis.analysis import Analysis
from ...analysis.group_order import GroupOrder, group_order
from ...distributed.agreement import Answer
from ...distributed.dtensors import is_distributed, local_part
from ...distributed.ranks import Ranks
from ...kernels.program import ReduceProgram
from .shards import local_objective, put_together
from .sums import SharedSums

__all__ = ["Spread"]


class Spread:
    """This process's part of the objective of one model. Making it tells the other processes nothing.

    Args:
        analysis: the plan without its module.
        read: all tensors that the objective reads, by name.
        ranks: the processes.
        failures: takes the errors that this process met in the middle of a solution.
        device: where sums and log-scales live.

    Raises:
        RescaleError: a tensor is placed in a way that does not say which entries a process holds.
    """

    def __init__(
        self, analysis: Analysis, read: Mapping[str, Tensor], ranks: Ranks, failures: list[BaseException], device: torch.device
    ) -> None:
        self.ranks = ranks
        self._analysis, self._read = analysis, read
        self.local = local_objective(analysis, read, ranks)
        self._vectors: dict[str, Tensor] | None = None
        self.sums = SharedSums(ranks, analysis.options.p, self.local.reference.to(device), failures)

    def order(self, program: ReduceProgram) -> GroupOrder:
        """Returns the groups as Gauss-Seidel takes them, of this process's part."""
        return group_order(self.local.program, self._analysis.solver_groups).to(program)

    def gather(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Returns this process's parts of the counted tensors, and their factors."""
        local, counted = self.local, self._analysis.counted
        positions = local.positions.tolist()
        if not counted.folded_names:
            parts = [local_part(self._read[counted.tensors[position].parameter]) for position in positions]
            return parts, [None] * len(positions)
        tensors, factors = counted.gather_whole({**self._read, **self._put_together(self.ranks.total)})
        found: list[Tensor] = []
        found_factors: list[Tensor | None] = []
        for position, layout in zip(positions, local.layouts, strict=True):
            tensor, factor = tensors[position], factors[position]
            found.append(local_part(tensor) if is_distributed(tensor) else layout.cut_tensor(tensor))
            found_factors.append(None if factor is None else layout.cut_tensor(factor))
        return found, found_factors

    def _put_together(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Puts the vectors of folded BatchNorms together, and keeps them."""
        if self._vectors is None:
            self._vectors = put_together(self._analysis, self._read, self.local, self.ranks, total)
        return self._vectors

    @property
    def joins(self) -> bool:
        """Whether folded BatchNorms have to be put together by a collective, before sums can be formed."""
        return bool(self.local.joined) and any(is_distributed(self._read[name]) for name in self.local.joined)

    def exchange(self, notes: Tensor, logs: Tensor | None, rooms: Tensor) -> tuple[Answer, tuple[Tensor, Tensor] | None]:
        """Makes the first collective of a step: that of the sums, or that by which folded BatchNorms are put together.

        Args:
            notes: those of this process.
            logs: (2 K,) log N and log P of its part; None: they come later.
            rooms: (2, K) how far its tensors let each variable go.

        Returns:
            The notes of all, and log N and log P of all with the rooms that all have, or None for these.
        """
        least = self._analysis.least_message
        if logs is not None:
            found, common, board = self.sums.with_rooms(logs, rooms, notes, least)
            return Answer(board), (found, common)
        boards: list[Tensor] = []

        def total(values: Tensor) -> Tensor:
            """Returns the sum over processes, and takes the notes along."""
            sums, board = self.ranks.total_with(values, notes, least)
            boards.append(board)
            return sums

        self._put_together(total)
        return Answer(boards[0]), None

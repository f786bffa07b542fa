"""The groups as Gauss-Seidel takes them: the tensors that carry each, and where their sums go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.program import ReduceProgram

__all__ = ["GroupOrder", "GroupSums", "group_order"]


@dataclass(frozen=True)
class GroupSums:
    """One group of variables, with the program that sums it alone.

    Attributes:
        variables: (n,) their ids.
        numbers: positions of the blocks that carry one of them.
        program: these blocks alone, N and P of these variables alone.
    """

    variables: Tensor
    numbers: tuple[int, ...]
    program: ReduceProgram


@dataclass(frozen=True)
class GroupOrder:
    """All groups that a tensor carries, in their order.

    Attributes:
        groups: one each.
        device: where their index tensors are.
    """

    groups: tuple[GroupSums, ...]
    device: torch.device

    def to(self, program: ReduceProgram) -> GroupOrder:
        """Returns the same on the device of a copy of the program that it was made of."""
        device = program.slots.device
        if self.device == device:
            return self
        groups = tuple(
            GroupSums(
                group.variables.to(device),
                group.numbers,
                # The blocks' own index tensors are on the device already.
                replace(
                    group.program,
                    blocks=tuple(program.blocks[number] for number in group.numbers),
                    slots=group.program.slots.to(device),
                    offsets=group.program.offsets.to(program.offsets),
                    log_weights=group.program.log_weights.to(program.offsets),
                    degree=group.program.degree.to(program.offsets),
                    counted_negative=group.program.counted_negative.to(device),
                    counted_positive=group.program.counted_positive.to(device),
                    _copies={},
                    _parts={},
                ),
            )
            for group in self.groups
        )
        return GroupOrder(groups, device)


def group_order(program: ReduceProgram, groups: NDArray[np.int64]) -> GroupOrder:
    """Returns the groups that some counted tensor carries, by ascending number.

    Args:
        program: the objective, on the CPU.
        groups: (K,) by variable, the number of its group.
    """
    count = program.num_scales
    ends = np.cumsum([block.slots for block in program.blocks], dtype=np.int64)[:-1]
    slots = np.split(program.slots.numpy(), ends) if program.blocks else []
    offsets = np.split(program.offsets.numpy(), ends) if program.blocks else []
    labels = np.append(groups, -1)
    touched: dict[int, list[int]] = {}
    for number, part in enumerate(slots):
        ids = np.where(part < 2 * count, part % max(count, 1), count)
        for label in np.unique(labels[ids]).tolist():
            touched.setdefault(label, []).append(number)
    touched.pop(-1, None)
    found = []
    for label in sorted(touched):
        numbers = touched[label]
        own = np.flatnonzero(groups == label)
        place = np.full(2 * count + 1, 2 * own.size)
        place[own] = np.arange(own.size)
        place[own + count] = np.arange(own.size) + own.size
        variables = torch.from_numpy(own)
        alone = replace(
            program,
            num_scales=own.size,
            blocks=tuple(program.blocks[number] for number in numbers),
            slots=torch.from_numpy(place[np.concatenate([slots[number] for number in numbers])]),
            offsets=torch.from_numpy(np.concatenate([offsets[number] for number in numbers])),
            log_weights=program.log_weights[numbers],
            degree=program.degree[variables],
            counted_negative=program.counted_negative[variables],
            counted_positive=program.counted_positive[variables],
            _copies={},
            _parts={},
        )
        found.append(GroupSums(variables, tuple(numbers), alone))
    return GroupOrder(tuple(found), program.slots.device)

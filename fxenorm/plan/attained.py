"""Whether the objective has a minimum: which variables would run away to infinity at the current weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.channel_sums import is_zero
from ..kernels.program import Block, ReduceProgram
from .held import Mask

__all__ = ["NOT_ATTAINED", "unattained"]

NOT_ATTAINED = "not attained: the norm falls for ever as it grows or shrinks, so balance leaves it where it is"


_ENTRIES = 4_000_000
"""A layer with at most this many weights (its kernels summed) is looked at weight by weight."""


def unattained(program: ReduceProgram, contributions: NDArray[np.float64], held: Mask, matrices: Sequence[Tensor]) -> Mask:
    """The variables that are not strongly connected with the fixed channels: for these there is no finite optimum.

    Minimising the norm is matrix balancing of the graph of channels, an arc for every non-zero weight from the channel that it
    reads to the one that it writes; the minimum is attained if and only if each arc lies on a cycle (Eaves, Hoffman,
    Rothblum and Schneider, 1985). A large layer is taken as a dense block less its zero rows and columns. Where a
    weight carries more than one variable on a side, or other exponents than 1, nothing is concluded from it.

    Args:
        program: the objective, on the CPU.
        contributions: (slots,) as `Backend.contributions` returns them for the current weights.
        held: (K,) variables that stay at 0 anyway: they act as fixed channels.
        matrices: as `Backend.matrices` returns them.

    Returns:
        (K,) a mask without the variables in `held`.
    """
    # Imported here: scipy takes longer to import than the rest of the plan.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    fixed = program.num_scales
    node = np.append(np.where(held, fixed, np.arange(fixed)), fixed)
    alive = contributions != -np.inf
    arcs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    position = 0
    for number, (block, matrix) in enumerate(zip(program.blocks, matrices, strict=True)):
        hub = np.int64(fixed + 1 + number)
        simple = _is_simple(block)
        ends: dict[int, NDArray[np.int64]] = {}
        for coefficient, ids in block.terms:
            nodes = node[ids.reshape(-1).numpy()][alive[position : position + ids.numel()]]
            position += ids.numel()
            side = 1 if coefficient > 0 else -1
            ends[side] = np.unique(np.append(ends.get(side, nodes[:0]), nodes))
        position += 0 if block.collided_rows is None else block.collided_rows.numel()
        present = _present(program.p, matrix) if simple and matrix.numel() <= _ENTRIES else None
        if present is not None:
            arcs.append(_entry_arcs(block, node, present, fixed))
            continue
        for side in (1, -1):
            nodes = ends.get(side, np.array([fixed]))
            hubs = np.full_like(nodes, hub)
            if side > 0 or not simple:
                arcs.append((hubs, nodes))
            if side < 0 or not simple:
                arcs.append((nodes, hubs))
    if not arcs:
        return np.zeros(fixed, dtype=bool)
    starts, stops = (np.concatenate(ends_of_arcs) for ends_of_arcs in zip(*arcs, strict=True))
    size = fixed + 1 + len(program.blocks)
    graph = csr_array((np.ones(starts.size, dtype=np.int8), (starts, stops)), shape=(size, size))
    _, component = connected_components(graph, directed=True, connection="strong")
    apart: Mask = (component[:fixed] != component[fixed]) & ~held
    return apart


def _present(p: float, matrix: Tensor) -> NDArray[np.bool_] | None:
    """Which entries of a matrix are not zero; None where all are."""
    zero = is_zero(p, matrix)
    return (~zero).cpu().numpy() if bool(zero.any()) else None


def _entry_arcs(
    block: Block, node: NDArray[np.int64], present: NDArray[np.bool_], fixed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An arc for every weight that is not zero, from the channel that it reads to the one that it writes, each once."""
    ends = {1: np.full((1,) * present.ndim, fixed), -1: np.full((1,) * present.ndim, fixed)}
    for coefficient, ids in block.terms:
        ends[coefficient] = node[ids.numpy()]
    reads, writes = (np.broadcast_to(ends[sign], present.shape)[present] for sign in (-1, 1))
    pairs = np.unique(np.stack([reads, writes]), axis=1)
    return pairs[0], pairs[1]


def _is_simple(block: Block) -> bool:
    """Whether every entry has at most one variable on each side, with exponent 1."""
    signs = [coefficient for coefficient, _ in block.terms]
    return block.collided is None and set(signs) <= {1, -1} and len(set(signs)) == len(signs)

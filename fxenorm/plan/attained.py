"""Whether the objective has a minimum: which variables would run away to infinity at the current weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels.program import Block, ReduceProgram
from .held import Mask

__all__ = ["NOT_ATTAINED", "unattained"]

NOT_ATTAINED = "not attained: the norm falls for ever as it grows or shrinks, so balance leaves it where it is"


def unattained(program: ReduceProgram, contributions: NDArray[np.float64], held: Mask) -> Mask:
    """The variables that are not strongly connected with the fixed channels: for these there is no finite optimum.

    Minimising the norm is matrix balancing of the graph of channels, an arc for every non-zero weight from the channel that it
    reads to the one that it writes; the minimum is attained if and only if each arc lies on a cycle (Eaves, Hoffman,
    Rothblum and Schneider, 1985). A layer is taken as a dense block less its zero rows and columns. Where a
    weight carries more than one variable on a side, or other exponents than 1, nothing is concluded from it.

    Args:
        program: the objective, on the CPU.
        contributions: (slots,) as `Backend.contributions` returns them for the current weights.
        held: (K,) variables that stay at 0 anyway: they act as fixed channels.

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
    for number, block in enumerate(program.blocks):
        hub = np.int64(fixed + 1 + number)
        simple = _is_simple(block)
        ends: dict[int, NDArray[np.int64]] = {}
        for coefficient, ids in block.terms:
            nodes = node[ids.reshape(-1).numpy()][alive[position : position + ids.numel()]]
            position += ids.numel()
            side = 1 if coefficient > 0 else -1
            ends[side] = np.unique(np.append(ends.get(side, nodes[:0]), nodes))
        position += 0 if block.collided_rows is None else block.collided_rows.numel()
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


def _is_simple(block: Block) -> bool:
    """Whether every entry has at most one variable on each side, with exponent 1."""
    signs = [coefficient for coefficient, _ in block.terms]
    return block.collided is None and set(signs) <= {1, -1} and len(set(signs)) == len(signs)

"""Whether the objective has a minimum: which variables would run away to infinity at the current weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.channel_sums import has_two_sides, is_zero, table_of
from ..kernels.program import Block, ReduceProgram
from .held import Mask

__all__ = ["NOT_ATTAINED", "channel_graph", "unattained", "unattained_together"]

NOT_ATTAINED = "not attained: the norm falls for ever as it grows or shrinks, so balance leaves it where it is"

_FEW, _SHARE = 1 << 16, 16
"""A layer is looked at weight by weight where this makes at most so many arcs, or arcs for this share of its weights."""


def unattained(program: ReduceProgram, contributions: NDArray[np.float64], held: Mask, matrices: Sequence[Tensor]) -> Mask:
    """The variables that are not strongly connected with the fixed channels: for these there is no finite optimum.

    Minimising the norm is matrix balancing of the graph of channels, an arc for every non-zero weight from the channel that it
    reads to the one that it writes; the minimum is attained if and only if each arc lies on a cycle (Eaves, Hoffman,
    Rothblum and Schneider, 1985). A large layer with many zeros, but not nearly all, is taken as a dense block less its zero
    rows and columns. Where a weight carries more than one variable on a side, or other exponents than 1, nothing is concluded
    from it.

    Args:
        program: the objective, on the CPU.
        contributions: (slots,) as `Backend.contributions` returns them for the current weights.
        held: (K,) variables that stay at 0 anyway: they act as fixed channels.
        matrices: as `Backend.matrices` returns them.

    Returns:
        (K,) a mask without the variables in `held`.
    """
    # Imported here: scipy takes longer to import than the rest of the plan.
    from scipy.sparse.csgraph import connected_components

    fixed = program.num_scales
    graph = channel_graph(program, contributions, held, matrices)
    _, component = connected_components(graph, directed=True, connection="strong")
    apart: Mask = (component[:fixed] != component[fixed]) & ~held
    return apart


def unattained_together(graph: Any, held: Mask, union: Callable[[Mask], Mask]) -> Mask:
    """`unattained` where every process knows the arcs of its own weights only.

    A channel is strongly connected with the fixed ones if it is reached from them and reaches them. Each process follows its
    own arcs as far as they lead, and all tell one another what they have reached, until nobody reaches more.

    Args:
        graph: of this process's weights, as `channel_graph` makes it.
        held: (K,) as in `unattained`.
        union: from this process's (2, K) mask to the union of all processes' masks.
    """
    from scipy.sparse.csgraph import breadth_first_order

    fixed = held.size
    graphs = [graph, graph.T.tocsr()]
    reached = np.zeros((2, fixed), dtype=bool)
    while True:
        ahead = reached.copy()
        for mask, arcs in zip(ahead, graphs, strict=True):
            start = _with_source(arcs, np.append(np.flatnonzero(mask), fixed))
            found = breadth_first_order(start, start.shape[0] - 1, return_predecessors=False)
            mask[found[found < fixed]] = True
        ahead = union(ahead)
        if (ahead == reached).all():
            break
        reached = ahead
    apart: Mask = ~reached.all(0) & ~held
    return apart


def channel_graph(program: ReduceProgram, contributions: NDArray[np.float64], held: Mask, matrices: Sequence[Tensor]) -> Any:
    """The sparse matrix of arcs between channels: 0 ... K - 1 the variables, K all that is fixed, then one a large layer.

    Args:
        program, contributions, held, matrices: see `unattained`.
    """
    from scipy.sparse import csr_array

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
        found = _entry_arcs(program.p, block, matrix, node, hub) if simple else None
        if found is not None:
            arcs += found
            continue
        for side in (1, -1):
            nodes = ends.get(side, np.array([fixed]))
            hubs = np.full_like(nodes, hub)
            if side > 0 or not simple:
                arcs.append((hubs, nodes))
            if side < 0 or not simple:
                arcs.append((nodes, hubs))
    size = fixed + 1 + len(program.blocks)
    none = np.zeros(0, dtype=np.int64)
    starts, stops = (np.concatenate([none, *ends_of_arcs]) for ends_of_arcs in zip((none, none), *arcs, strict=True))
    return csr_array((np.ones(starts.size, dtype=np.int8), (starts, stops)), shape=(size, size))


def _with_source(graph: Any, targets: NDArray[np.int64]) -> Any:
    """A graph with one more node at the end, from which arcs lead to `targets`."""
    from scipy.sparse import csr_array

    arcs, size = graph.tocoo(), graph.shape[0]
    starts = np.concatenate([arcs.row, np.full(targets.size, size)])
    stops = np.concatenate([arcs.col, targets])
    return csr_array((np.ones(starts.size, dtype=np.int8), (starts, stops)), shape=(size + 1, size + 1))


def _entry_arcs(
    p: float, block: Block, matrix: Tensor, node: NDArray[np.int64], hub: np.int64
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]] | None:
    """Arcs for every weight that is not zero; None where all are there, or too many are missing here and there.

    What a channel writes into all others takes the way over the hub: only channels with zeros need arcs of their own.
    """
    if not has_two_sides(block):
        return _scattered_arcs(block, (~is_zero(p, matrix)).cpu().numpy(), node)
    present = table_of(block, ~is_zero(p, matrix))
    sides = [node[ids.reshape(-1).numpy()] for _, ids in block.terms]
    if block.terms[0][0] > 0:
        present, sides = present.T, sides[::-1]
    reads, writes = sides
    full = present.all(1)
    if bool(full.all()):
        return None
    # A read that reaches nothing is dead, and held.
    some = present[~full]
    if int(some.sum()) > max(_FEW, matrix.numel() // _SHARE):
        return None
    rows, columns = some.nonzero(as_tuple=True)
    whole = full.cpu().numpy()
    found = [(reads[~whole][rows.cpu().numpy()], writes[columns.cpu().numpy()])]
    if whole.any():
        found += [(reads[whole], np.full(int(whole.sum()), hub)), (np.full_like(writes, hub), writes)]
    return found


def _scattered_arcs(
    block: Block, present: NDArray[np.bool_], node: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]] | None:
    """The same where rows and columns are none: one by one (the groups of a convolution)."""
    count = int(present.sum())
    if count == present.size or count > max(_FEW, present.size // _SHARE):
        return None
    ends = {sign: node[-1:].reshape((1,) * present.ndim) for sign in (1, -1)}
    for coefficient, ids in block.terms:
        ends[coefficient] = node[ids.numpy()]
    reads, writes = (np.broadcast_to(ends[sign], present.shape)[present] for sign in (-1, 1))
    return [(reads, writes)]


def _is_simple(block: Block) -> bool:
    """Whether every entry has at most one variable on each side, with exponent 1."""
    signs = [coefficient for coefficient, _ in block.terms]
    return block.collided is None and set(signs) <= {1, -1} and len(set(signs)) == len(signs)

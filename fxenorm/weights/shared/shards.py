"""The objective of the part of a model that one process holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...analysis.analysis import Analysis
from ...analysis.counted import CountedTensor
from ...distributed.dtensors import is_distributed, local_part
from ...distributed.layout import Layout, layout_of, placements_of, whole
from ...distributed.ranks import Ranks
from ...kernels.program import ReduceProgram, ScaleTarget, TermTensors, build_program
from ...kernels.terms import normalise

__all__ = ["LocalObjective", "local_objective", "local_target", "put_together"]


@dataclass(frozen=True)
class LocalObjective:
    """The part of the objective that one process adds to the sums of all.

    Attributes:
        program: over its parts of counted tensors; with the degree of the whole.
        positions: (blocks,) the place of each in ``CountedTensors.counted``.
        layouts: by block, which part of that tensor it is.
        joined: vectors of folded BatchNorms that are cut in another way than the layer they are folded into, so that every
            process needs all of each.
        reference: (2 K,) logarithms of the largest factor in front of anything that N and P sum.
    """

    program: ReduceProgram
    positions: Tensor
    layouts: tuple[Layout, ...]
    joined: tuple[str, ...]
    reference: Tensor


def local_objective(analysis: Analysis, tensors: Mapping[str, Tensor], ranks: Ranks) -> LocalObjective:
    """Returns the objective of this process's part of the counted tensors; made once for each way to spread them.

    Args:
        analysis: the plan without its module.
        tensors: all that the objective reads, by name.
        ranks: the processes.

    Raises:
        RescaleError: see `layout_of`.
    """
    read = sorted({item.parameter for item in analysis.counted.tensors} | analysis.counted.folded_names)
    key = ("objective", ranks.rank, ranks.first_rank, tuple((name, placements_of(tensors[name])) for name in read))
    known: LocalObjective | None = analysis.parts.get(key)
    if known is None:
        analysis.parts[key] = known = _build(analysis, tensors, ranks)
    return known


def _build(analysis: Analysis, tensors: Mapping[str, Tensor], ranks: Ranks) -> LocalObjective:
    """Finds this process's part of each counted tensor; see `local_objective`."""
    members: list[tuple[int, Layout]] = []
    joined: dict[str, None] = {}
    for position, item in enumerate(analysis.counted.tensors):
        name, vectors = _layout_name(item, tensors), _vectors(item)
        if not _is_aligned(item, tensors):
            joined.update(dict.fromkeys(vectors))
            if item.channels is None:
                members.append((position, whole(item.shape, ranks.rank == ranks.first_rank)))
                continue
        members.append((position, layout_of(name, tensors[name], ranks.first_rank, ranks.rank)))
    kept = [(position, layout) for position, layout in members if layout.counts and not layout.is_empty]
    return _assembled(analysis, [position for position, _ in kept], tuple(layout for _, layout in kept), tuple(joined))


def _assembled(
    analysis: Analysis, positions: Sequence[int], layouts: tuple[Layout, ...], joined: tuple[str, ...]
) -> LocalObjective:
    """Builds the program for some parts of counted tensors."""
    counted_tensors, count = analysis.counted, analysis.symmetry.num_scales
    counted = []
    for position, layout in zip(positions, layouts, strict=True):
        item = counted_tensors.tensors[position]
        terms = [(coefficient, layout.cut(ids)) for coefficient, ids in normalise(item.terms, len(item.shape))]
        counted.append((layout.local_shape, terms, item.log_weight))
    whole_program = counted_tensors.program
    offsets = [counted_tensors.tensors[position].offset for position in positions]
    program = replace(
        build_program(counted, count, analysis.options.p, offsets),
        degree=whole_program.degree,
        counted_negative=whole_program.counted_negative,
        counted_positive=whole_program.counted_positive,
    )
    reference = torch.full((2 * count + 1,), -math.inf, dtype=torch.float64, device="cpu")
    reference = reference.scatter_reduce(0, whole_program.slots, whole_program.offsets, "amax")[:-1]
    reference = torch.where(reference.isfinite(), reference, 0.0)
    return LocalObjective(program, torch.tensor(positions, dtype=torch.int64, device="cpu"), layouts, joined, reference)


def _layout_name(item: CountedTensor, tensors: Mapping[str, Tensor]) -> str:
    """Returns the tensor by whose layout a counted one is cut: itself; of a folded bias, its first vector that is cut."""
    if item.fold is None or item.channels is not None:
        return item.parameter
    vectors = _vectors(item)
    return next((name for name in vectors if is_distributed(tensors[name])), vectors[0])


def _vectors(item: CountedTensor) -> list[str]:
    """Returns the names of the vectors by which a folded BatchNorm changes a layer's weight or bias."""
    fold = item.fold
    if fold is None:
        return []
    names = [fold.variance, fold.gamma]
    if item.channels is None:
        names += [fold.bias, fold.beta, fold.mean]
    return [name for name in names if name is not None]


def _is_aligned(item: CountedTensor, tensors: Mapping[str, Tensor]) -> bool:
    """Whether every process holds the entries of a fold's vectors that its part of the layer needs."""
    fold = item.fold
    if fold is None:
        return True
    cut = [tensors[name] for name in _vectors(item) if is_distributed(tensors[name]) and _is_cut(tensors[name])]
    if not cut:
        return True
    first = tensors[fold.weight] if item.channels is not None else cut[0]
    on_rows = item.channels is None or (fold.output_axis == 0 and not (fold.transposed and fold.groups > 1))
    return on_rows and all(placements_of(vector) == placements_of(first) for vector in cut)


def _is_cut(tensor: Any) -> bool:
    """Whether no process holds all of a distributed tensor."""
    return any(type(place).__name__ != "Replicate" for place in tensor.placements)


def put_together(
    analysis: Analysis, tensors: Mapping[str, Tensor], local: LocalObjective, ranks: Ranks, total: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Returns the vectors of folded BatchNorms in full length, 0 where this process neither holds nor needs them.

    Those that are cut in another way than their layer are added up over all processes, in one call of `total`.
    """
    found: dict[str, Tensor] = {}
    shared: list[Tensor] = []
    for name in sorted(analysis.counted.folded_names):
        tensor = tensors[name]
        if tensor.ndim > 1 or not is_distributed(tensor):
            found[name] = tensor
            continue
        layout = layout_of(name, tensor, ranks.first_rank, ranks.rank)
        part, (held,) = local_part(tensor).detach(), layout.positions
        full = part.new_zeros(layout.shape)
        if held is None:
            full.copy_(part)
        else:
            full[torch.from_numpy(held).to(part.device)] = part
        found[name] = full
        if name in local.joined:
            shared.append(full.double() if layout.counts else torch.zeros_like(full, dtype=torch.float64))
    # Only what is cut travels: of an ordinary tensor every process has all.
    names = [name for name in sorted(local.joined) if is_distributed(tensors[name])]
    if names:
        sums = torch.split(total(torch.cat(shared)), [part.numel() for part in shared])
        found.update({name: part.to(found[name]) for name, part in zip(names, sums, strict=True)})
    return found


def local_target(analysis: Analysis, target: ScaleTarget, ranks: Ranks) -> ScaleTarget:
    """Returns this process's part of a target; its exponents are cut once.

    Raises:
        RescaleError: see `layout_of`.
    """
    tensor = target.tensor
    if not is_distributed(tensor):
        return target
    part = local_part(tensor)
    mesh, placements = placements_of(tensor)
    key = ("terms", id(target.terms), id(mesh), placements, part.shape, target.power)
    known: tuple[TermTensors, Any, TermTensors] | None = analysis.parts.get(key)
    if known is None:
        # What gradients are summed up in is linear in them.
        layout = layout_of(target.name, tensor, ranks.first_rank, ranks.rank, summand=target.power == -1)
        cut = tuple((coefficient, layout.cut_tensor(ids)) for coefficient, ids in target.terms)
        # The whole terms and the mesh are kept beside it, so that no others can come to lie where they do.
        analysis.parts[key] = known = (target.terms, mesh, cut)
    return replace(target, tensor=part, terms=known[2], owner=tensor)

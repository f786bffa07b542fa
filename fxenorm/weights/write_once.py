"""Nothing is multiplied twice: of targets that are the same memory one is kept, and those that only overlap are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..distributed.dtensors import local_part, memory_of
from ..errors import RescaleError
from ..kernels.memory import has_plain_memory
from ..kernels.program import ScaleTarget
from ..optim.factor_pair import FactorPair

__all__ = ["distinct_pairs", "distinct_targets"]


def distinct_targets(targets: Sequence[ScaleTarget]) -> list[ScaleTarget]:
    """Returns the targets, each piece of memory once, in their order.

    Two optimizers hold the same state tensors after ``b.load_state_dict(a.state_dict())``.

    Raises:
        RescaleError: two targets share memory and are to be multiplied by different factors, or overlap in part.
    """
    first: dict[Any, ScaleTarget] = {}
    kept = []
    for target in targets:
        if not local_part(target.tensor).numel():
            kept.append(target)
            continue
        known = first.setdefault(_view_of(target.tensor), target)
        if known is target:
            kept.append(target)
        elif not _same_factors(known, target):
            raise _clash(known, target)
    _refuse_overlaps(kept)
    return kept


def distinct_pairs(pairs: Sequence[FactorPair]) -> list[FactorPair]:
    """Returns Adafactor's pairs in their order, each once."""
    return list({(_view_of(pair.rows), _view_of(pair.columns)): pair for pair in pairs}.values())


def _view_of(tensor: Tensor) -> Any:
    """Returns a key that is equal for two tensors of the same entries."""
    part = local_part(tensor)
    if isinstance(part, FakeTensor):  # it has no memory that another could share
        return id(part)
    return memory_of(part), part.dtype, tuple(part.shape), part.stride() if part.layout == torch.strided else None


def _same_factors(one: ScaleTarget, other: ScaleTarget) -> bool:
    """Whether two targets of one shape are multiplied by the same."""
    if one.power != other.power or one.offset != other.offset or len(one.terms) != len(other.terms):
        return False
    return all(
        some == others and ids.shape == other_ids.shape and (ids is other_ids or torch.equal(ids, other_ids))
        for (some, ids), (others, other_ids) in zip(one.terms, other.terms, strict=True)
    )


def _refuse_overlaps(targets: Sequence[ScaleTarget]) -> None:
    """Raises where two of the targets have entries in common."""
    by_device: dict[torch.device, list[tuple[int, int, int]]] = {}
    for number, target in enumerate(targets):
        for device, start, end in _span(local_part(target.tensor)):
            by_device.setdefault(device, []).append((start, end, number))
    for spans in by_device.values():
        reach, owner = -1, 0
        for start, end, number in sorted(spans):
            if start < reach and _true_overlap(targets[owner].tensor, targets[number].tensor):
                raise _clash(targets[owner], targets[number])
            if end > reach:
                reach, owner = end, number


def _span(tensor: Tensor) -> Iterator[tuple[torch.device, int, int]]:
    """Yields the first byte and the one behind the last, if a tensor is plain memory."""
    if tensor.numel() and has_plain_memory(tensor):
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        yield tensor.device, start, start + (last + 1) * tensor.element_size()


def _true_overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose spans overlap have entries in common: columns of one table may lie between one another."""
    first, second = local_part(one), local_part(other)
    if first.stride() != second.stride() or first.element_size() != second.element_size() or first.ndim == 0:
        return True
    size, strides = first.element_size(), sorted(set(first.stride()))
    apart = (second.data_ptr() - first.data_ptr()) // size
    # Every stride is a multiple of the least one above 1: then what lies at another remainder is never the same entry.
    least = strides[0]
    return least <= 1 or any(stride % least for stride in strides) or apart % least == 0


def _clash(one: ScaleTarget, other: ScaleTarget) -> RescaleError:
    """Returns the error that names two targets which share memory."""
    return RescaleError(
        f"{one.name} and {other.name} share memory and would be multiplied twice: nothing was rescaled. Give each its own tensor "
        "(clone), or pass only one of them"
    )

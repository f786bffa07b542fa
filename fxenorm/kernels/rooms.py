"""How far each variable may move before an entry of some tensor leaves the range of the tensor's type, at either end.

An entry's room is a ratio for each of the two directions. Every variable is kept to the least of room / sum of |exponents| over
the entries that carry it, so that no entry leaves its room, whatever the other variables do within theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .factors import MOST_GROWTH, beyond_factors, most_growth
from .parts import Index, part_of, parts_of
from .program import Keep, ScaleTarget, as_float, float_dtype

__all__ = ["SLACK", "are_far_from_ends", "ends_of", "least_and_largest", "leaving", "most_room", "reach_of", "rooms", "rounded"]

_KEPT = 0.75
"""In units of the smallest number of a type: what a product must not fall below, which half of it would be rounded to zero."""

SLACK = 1e-6
"""Rounding errors of factors must not decide; a natural logarithm, about ten times the rounding of a float32."""

_TRIFLE = 2.0**-11
"""In float16, entries below this part of the largest of their row may lose digits to powers of two: half of the last digit of a
number as large as that one."""

_BITS = {
    torch.float16: (torch.int16, 10, 0x7FFF),
    torch.bfloat16: (torch.int16, 7, 0x7FFF),
    torch.float32: (torch.int32, 23, 0x7FFFFFFF),
    torch.float64: (torch.int64, 52, 0x7FFFFFFFFFFFFFFF),
}
"""By type, integers of its size, the bits of its fraction, and all bits but the sign."""


def ends_of(target: ScaleTarget) -> tuple[float, float, float]:
    """Returns three sizes: no entry may fall below the first, none that keeps its digits below the second, or pass the third."""
    kind = torch.finfo(target.tensor.dtype)
    if target.offset:
        # Beside the offset an entry has no more digits than the offset leaves it.
        spacing = kind.eps * abs(target.offset)
        return _KEPT * spacing, spacing, kind.max
    smallest = kind.smallest_normal * kind.eps
    return _KEPT * smallest, kind.smallest_normal, kind.max


def rooms(targets: Sequence[ScaleTarget], num_scales: int, device: torch.device) -> Tensor:
    """Returns (2, K): how far each variable can go up and down, natural logarithms >= 0; waits for nothing.

    What is zero or not finite has left its type's range already: only the range of the factors themselves limits it.

    Args:
        targets: everything that is multiplied.
        num_scales: the number of variables K.
        device: of the result.
    """
    found = torch.full((2, num_scales + 1), MOST_GROWTH, dtype=float_dtype(device), device=device)
    groups: dict[tuple[Any, ...], tuple[ScaleTarget, list[tuple[Tensor, Tensor]]]] = {}
    for target in targets:
        if not target.terms or not target.tensor.numel():
            continue
        sizes = _sizes_by_term(target)
        for (coefficient, ids), size in zip(target.terms, sizes, strict=True):
            power = coefficient * target.power
            key = (target.tensor.device, *ends_of(target), target.keep, reach_of(target), power > 0)
            groups.setdefault(key, (target, []))[1].append((ids.reshape(-1), size))
    for key, (target, members) in groups.items():
        ids = torch.cat([ids for ids, _ in members])
        above, below = _room(target, torch.cat([size for _, size in members], dim=1))
        sides = (above, below) if key[-1] else (below, above)
        most = most_room(float_dtype(target.tensor.device))
        for side, room in zip(found, sides, strict=True):
            room = room.nan_to_num(nan=most).clamp(0.0, most) / reach_of(target)
            side.scatter_reduce_(0, ids.to(device), as_float(room, device), "amin")
    return found[:, :-1]


def most_room(dtype: torch.dtype) -> float:
    """Returns how far an entry may move whatever it is, a natural logarithm, from the dtype of the factors."""
    return most_growth(dtype) * (1.0 - SLACK)


def are_far_from_ends(targets: Sequence[ScaleTarget], log_scales: Tensor) -> bool:
    """Whether a rescaling surely keeps every entry in its room: two numbers of each tensor say so at nearly every step.

    Args:
        targets: everything that is multiplied, on the CPU: the answer is waited for.
        log_scales: (K,) natural logarithms, on the CPU.
    """
    padded = torch.nn.functional.pad(log_scales, (0, 1))
    if not bool((padded.abs() < MOST_GROWTH).all()):
        return False
    return all(_is_far(target, padded, least_and_largest) for target in targets if target.terms and target.tensor.numel())


def _is_far(target: ScaleTarget, log_scales: Tensor, sizes: Callable[[ScaleTarget], tuple[float, float]]) -> bool:
    """Whether a rescaling surely keeps every entry of a tensor in its room, and all its digits; waits for the device.

    Args:
        target: the tensor.
        log_scales: (K + 1,) natural logarithms, 0 for "fixed" at the end, on the tensor's device.
        sizes: as `least_and_largest`.
    """
    changes = [target.power * coefficient * log_scales[ids] for coefficient, ids in target.terms]
    highest, lowest = ([float(end) for end in ends] for ends in zip(*(c.aminmax()[::-1] for c in changes), strict=True))
    most = most_growth(log_scales.dtype)
    if not (sum(max(end, 0.0) for end in highest) < most and sum(min(end, 0.0) for end in lowest) > -most):
        # The factors themselves may become infinite or 0, which would make a 0, too, what is no number.
        return False
    up, down = sum(highest), sum(lowest)
    if up == down == 0.0:
        return True
    least, largest = sizes(target)
    if largest == 0.0:
        return True
    _, whole, top = ends_of(target)
    fits_above = up < math.log(top) - math.log(largest) - SLACK or up <= 0.0
    return math.isfinite(largest) and fits_above and (-down < math.log(least) - math.log(whole) - SLACK or down >= 0.0)


def least_and_largest(target: ScaleTarget) -> tuple[float, float]:
    """Returns the least size of an entry that is not 0, and the largest; where all are 0, the second alone counts."""
    least, largest = [], []
    by_bits = target.tensor.dtype in _BITS and not target.offset
    for index in parts_of(target.tensor):
        part = target.tensor.detach()[index]
        if by_bits:
            # Without their sign, the bits of numbers are in the order of their sizes; 0 - 1 is the largest of all.
            kind, _, mask = _BITS[part.dtype]
            bits = part.contiguous().view(kind) & mask
            largest.append(bits.amax())
            least.append(bits.sub_(1).bitwise_and_(mask).amin())
            continue
        size = _size(target, part) if target.offset else part.abs()
        largest.append(size.amax())
        least.append(size.masked_fill_(size == 0, math.inf).amin())
    ends = torch.stack(least).amin(), torch.stack(largest).amax()
    if by_bits:
        kind, _, _ = _BITS[target.tensor.dtype]
        ends = (ends[0] + 1).to(kind).view(target.tensor.dtype), ends[1].view(target.tensor.dtype)
    return float(ends[0]), float(ends[1])


def leaving(
    targets: Sequence[ScaleTarget],
    log2_scales: Callable[[torch.device], Tensor],
    num_scales: int,
    sizes: Callable[[ScaleTarget], tuple[float, float]] | None = None,
) -> Tensor:
    """Returns (K,) bool: the variables that carry an entry over an end of its room; a rescaling that flags none loses nothing.

    Args:
        targets: everything that is multiplied.
        log2_scales: by device, base-2 log-scales, and 0 for "fixed" at the end.
        num_scales: the number of variables K.
        sizes: as `least_and_largest`, which stands in for None.
    """
    first = log2_scales(torch.device("cpu"))
    flagged = torch.zeros(num_scales + 1, dtype=first.dtype, device=first.device)
    last: ScaleTarget | None = None
    for target, index, part in _all_parts(_near_ends(targets, log2_scales, sizes)):
        if target is not last:
            last, lines = target, _lines(target)
        changes = _changes(target, index, log2_scales(part.device))
        growth = sum(changes[1:], changes[0])
        size = _size(target, part)
        above = math.log2(ends_of(target)[2]) - size.log2()
        out = ((growth > above.clamp(min=0.0)) & (size > 0)) | (growth < -_octaves_below(target, index, part, lines))
        out &= size.isfinite()
        too_large, too_small = beyond_factors(changes)
        for (_, ids), change in zip(target.terms, changes, strict=True):
            over = tuple(axis for axis in range(part.ndim) if change.shape[axis] != out.shape[axis])
            # Those that pull the other way do no harm.
            hit = (out & (change * growth > 0)) | (too_large & (change > 0)) | (too_small & (change < 0))
            hit = hit.amax(over, keepdim=True) if over else hit
            places, values = part_of(ids, index).reshape(-1), hit.reshape(-1).to(flagged.dtype)
            flagged = flagged.index_add(0, places.to(flagged.device), values.to(flagged.device))
    return flagged[:-1] > 0


def rounded(
    targets: Sequence[ScaleTarget],
    log2_scales: Callable[[torch.device], Tensor],
    sizes: Callable[[ScaleTarget], tuple[float, float]] | None = None,
) -> int:
    """Returns how many entries of the targets that are to keep their digits lose some; waits for the device."""
    count = 0
    keeping = [target for target in targets if target.keep == Keep.DIGITS]
    for target, index, part in _all_parts(_near_ends(keeping, log2_scales, sizes)):
        growth = sum(_changes(target, index, log2_scales(part.device)))
        count += int((growth < -_octaves_of_digits(part) - 0.5).sum())
    return count


def _near_ends(
    targets: Sequence[ScaleTarget],
    log2_scales: Callable[[torch.device], Tensor],
    sizes: Callable[[ScaleTarget], tuple[float, float]] | None,
) -> Iterator[ScaleTarget]:
    """Yields the targets of which two numbers do not say already that every entry stays in its room."""
    known: dict[torch.device, tuple[Tensor, bool]] = {}
    for target in targets:
        if target.terms and target.tensor.numel():
            device = target.tensor.device
            if device not in known:
                log_scales = log2_scales(device) * math.log(2.0)
                known[device] = log_scales, bool((log_scales.abs() < MOST_GROWTH).all())
            log_scales, are_small = known[device]
            if not are_small or not _is_far(target, log_scales, sizes or least_and_largest):
                yield target


def _all_parts(targets: Iterable[ScaleTarget]) -> Iterator[tuple[ScaleTarget, Index, Tensor]]:
    """Yields the entries of all targets, a part at a time."""
    for target in targets:
        if target.terms and target.tensor.numel():
            for index in parts_of(target.tensor):
                yield target, index, target.tensor.detach()[index]


def _changes(target: ScaleTarget, index: Index, log2_scales: Tensor) -> list[Tensor]:
    """Returns by term the octaves by which a part grows."""
    return [target.power * coefficient * log2_scales[part_of(ids, index)] for coefficient, ids in target.terms]


def reach_of(target: ScaleTarget) -> int:
    """Returns the largest sum of |exponents| of an entry."""
    return abs(target.power) * sum(abs(coefficient) for coefficient, _ in target.terms)


def _size(target: ScaleTarget, part: Tensor) -> Tensor:
    """Returns absolute values in a wide type, the offset added."""
    if target.offset:
        part = part.to(torch.promote_types(part.dtype, float_dtype(part.device))) + target.offset
    size = part.abs()
    return as_float(size, size.device)


def _narrow_size(target: ScaleTarget, part: Tensor) -> Tensor:
    """Returns absolute values in the tensor's own type where that will do; 0 for what is not finite."""
    size = _size(target, part) if target.offset else part.abs()
    return size.nan_to_num_(nan=0.0, posinf=0.0)


def _lines(target: ScaleTarget) -> list[Tensor]:
    """Returns the largest of each row and of each column, broadcastable to the tensor; none where they do not matter.

    In a vector every entry is a row.
    """
    tensor = target.tensor
    if tensor.ndim < 2 or target.keep == Keep.ENTRIES or (target.keep == Keep.DIGITS and tensor.dtype != torch.float16):
        return []
    found: list[Tensor] = []
    for axis in (0, 1):
        parts = parts_of(tensor)
        others = tuple(place for place in range(tensor.ndim) if place != axis)
        first = _narrow_size(target, tensor.detach()[next(parts)])
        shape = [size if place == axis else 1 for place, size in enumerate(tensor.shape)]
        total = torch.zeros(shape, dtype=first.dtype, device=tensor.device)
        for index in parts_of(tensor):
            own = part_of(total, index)
            torch.maximum(own, _narrow_size(target, tensor.detach()[index]).amax(others, keepdim=True), out=own)
        found.append(total)
    return found


def _keep_digits(target: ScaleTarget, index: Index, size: Tensor, lines: Sequence[Tensor]) -> Tensor:
    """Returns which entries of a part are to keep all their digits."""
    if target.keep == Keep.ENTRIES:
        return torch.zeros_like(size, dtype=torch.bool)
    if not lines:
        return torch.ones_like(size, dtype=torch.bool)
    row, column = (part_of(line, index).to(size.dtype) for line in lines)
    if target.keep == Keep.DIGITS:
        return size >= _TRIFLE * row
    return (size >= row) | (size >= column)


def _counts_digits(target: ScaleTarget) -> bool:
    """Whether the last digit of each entry says how far it may shrink; beside an offset the offset's own digits say so."""
    return target.keep == Keep.DIGITS and target.tensor.dtype in _BITS and not target.offset


def _octaves_of_digits(part: Tensor) -> Tensor:
    """Returns by how many octaves entries can shrink without losing a digit that they have; infinite for 0."""
    kind, width, mask = _BITS[part.dtype]
    bits = part.view(kind) & mask
    exponent = bits >> width
    fraction = (bits & ((1 << width) - 1)) | ((exponent > 0).to(kind) << width)
    last = as_float(fraction & -fraction, part.device).log2()
    octaves = (exponent.clamp(min=1) - 1).to(last.dtype) + last
    return torch.where(fraction == 0, math.inf, octaves)


def _octaves_below(target: ScaleTarget, index: Index, part: Tensor, lines: Sequence[Tensor]) -> Tensor:
    """Returns by how many octaves entries of a part may shrink; infinite for 0 and for what is not finite."""
    kept, whole, _ = ends_of(target)
    size = _size(target, part)
    keeping = _keep_digits(target, index, _narrow_size(target, part), lines)
    above_kept = (size.log2() - math.log2(kept)).clamp(min=0.0)
    if _counts_digits(target):
        octaves = torch.where(keeping, _octaves_of_digits(part), above_kept)
    else:
        octaves = torch.where(keeping, (size.log2() - math.log2(whole)).clamp(min=0.0), above_kept)
    return torch.where((size > 0) & size.isfinite(), octaves, math.inf)


def _sizes_by_term(target: ScaleTarget) -> list[Tensor]:
    """Returns by term (3, ids): the largest entry; the least that is not 0; and the least of those that keep their digits.

    The last are octaves where powers of two are to leave all digits.
    """
    tensor, lines = target.tensor.detach(), _lines(target)
    by_bits = _counts_digits(target)
    found = [_no_sizes(ids, tensor) for _, ids in target.terms]
    for index in parts_of(tensor):
        part = tensor[index]
        size = _narrow_size(target, part)
        keeping = None if target.keep == Keep.ENTRIES else _keep_digits(target, index, size, lines)
        some = size.masked_fill(size == 0, math.inf)
        least = some
        if keeping is not None:
            least = torch.where(keeping, _octaves_of_digits(part) if by_bits else some, math.inf)
            if by_bits:
                some = some.masked_fill(keeping, math.inf)
        for (_, ids), total in zip(target.terms, found, strict=True):
            axes = tuple(axis for axis in range(part.ndim) if ids.shape[axis] != tensor.shape[axis])
            own = [part_of(one, index) for one in total.unbind()]
            torch.maximum(own[0], _least(-size, axes).neg().to(own[0].dtype), out=own[0])
            torch.minimum(own[1], _least(some, axes).to(own[1].dtype), out=own[1])
            if keeping is not None:
                torch.minimum(own[2], _least(least, axes).to(own[2].dtype), out=own[2])
    return [total.reshape(3, -1) for total in found]


def _no_sizes(ids: Tensor, tensor: Tensor) -> Tensor:
    """Returns (3, *ids.shape) the sizes of no entries at all."""
    found = torch.full((3, *ids.shape), math.inf, dtype=float_dtype(tensor.device), device=tensor.device)
    found[0] = 0.0
    return found


def _least(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the least along some axes, which stay with size 1."""
    return values.amin(axes, keepdim=True) if axes else values


def _room(target: ScaleTarget, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns by how much entries can grow and shrink, natural logarithms, from the sizes of `_sizes_by_term`."""
    kept, whole, largest = ends_of(target)
    logs = sizes.log()
    above, below = math.log(largest) - SLACK - logs[0], logs[1] - math.log(kept) - SLACK
    if _counts_digits(target):
        return above, torch.minimum(below, sizes[2] * math.log(2.0))
    return above, torch.minimum(below, logs[2] - math.log(whole) - SLACK)

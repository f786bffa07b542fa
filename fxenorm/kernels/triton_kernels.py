"""GPU kernels in Triton that walk tables of addresses: a launch does for all tensors of a type what it does for one.

Arithmetic is in float64: a step moves bytes, and squares of float32 weights leave the range of float32. No atomics, and every
sum is taken in a fixed order, so that every run gives the same bits. Tables are int64; -1 in one of their offsets: nothing there.
Importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["combine", "fill_factors", "headroom", "reduce_tiles", "scale_tiles", "settle"]


@triton.jit
def _present(place: tl.tensor, count: tl.tensor) -> tl.tensor:
    """How many entries there are at an offset."""
    return tl.where(place >= 0, count, 0)


@triton.jit
def _powered(x: tl.tensor, p: tl.tensor, POWER: tl.constexpr) -> tl.tensor:
    """|x|^p; POWER: p where it is a small integer, 0 for the largest, -1 for any other p."""
    y = tl.abs(x)
    if POWER == -1:
        # Zero has no logarithm; NaN stays.
        some = tl.where(y == 0.0, 1.0, y)
        y = tl.where(y == 0.0, 0.0, tl.exp(p * tl.log(some)))
    elif POWER == 2:
        y = y * y
    elif POWER == 3:
        y = y * y * y
    elif POWER == 4:
        y = y * y
        y = y * y
    return y


@triton.jit
def reduce_tiles(
    tiles: tl.tensor,
    weights: tl.tensor,
    row_factors: tl.tensor,
    factors: tl.tensor,
    work: tl.tensor,
    settings: tl.tensor,
    TYPE: tl.constexpr,
    POWER: tl.constexpr,
    RESCALED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One tile's sums of |w|^p by row and by column.

    `tiles`: address, width, rows, columns, then offsets of the sums by row and by column in `work`, of the rows' folded
    BatchNorms in `row_factors`, and of the factors of rows and columns in `factors`, which are used with RESCALED.
    """
    tile = tiles + tl.program_id(0).to(tl.int64) * 9
    base = tl.load(tile).to(tl.pointer_type(TYPE))
    width, rows, columns = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    row_sums, column_sums = tl.load(tile + 4), tl.load(tile + 5)
    folded, row_place, column_place = tl.load(tile + 6), tl.load(tile + 7), tl.load(tile + 8)
    weight = tl.load(weights + tl.program_id(0))
    p = tl.load(settings)
    column = tl.arange(0, COLUMNS)
    there = column < columns
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
    broken = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
    if RESCALED:
        column_factor = tl.load(factors + column_place + column, mask=column < _present(column_place, columns), other=1.0)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        here = row < rows
        at = row[:, None] * width + column[None, :]
        x = tl.load(base + at, mask=here[:, None] & there[None, :], other=0.0).to(tl.float64)
        x = x * tl.load(row_factors + folded + row, mask=row < _present(folded, rows), other=1.0)[:, None]
        if RESCALED:
            x = x * tl.load(factors + row_place + row, mask=row < _present(row_place, rows), other=1.0)[:, None]
            x = x * column_factor[None, :]
        y = _powered(x, p, POWER)
        if POWER == 0:
            # Of NaN and a number, the larger is the number: NaN goes beside.
            lost = tl.where(y < float("inf"), 0.0, float("nan"))
            total = tl.maximum(total, y)
            broken += lost
            of_row = tl.max(y, 1) + tl.sum(lost, 1)
        else:
            total += y
            of_row = tl.sum(y, 1)
        tl.store(work + row_sums + row, weight * of_row, mask=row < _present(row_sums, rows))
    if POWER == 0:
        of_column = tl.max(total, 0) + tl.sum(broken, 0)
    else:
        of_column = tl.sum(total, 0)
    tl.store(work + column_sums + column, weight * of_column, mask=column < _present(column_sums, columns))


@triton.jit
def combine(
    starts: tl.tensor,
    positions: tl.tensor,
    work: tl.tensor,
    parts: tl.tensor,
    count: tl.tensor,
    LARGEST: tl.constexpr,
    SEGMENTS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Sums of tiles to sums of segments: each is a piece of what arrives at one N or P, `positions` in `work`."""
    segment = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    inside = segment < count
    begin = tl.load(starts + segment, mask=inside, other=0)
    end = tl.load(starts + segment + 1, mask=inside, other=0)
    total = tl.zeros([SEGMENTS, LANES], dtype=tl.float64)
    broken = tl.zeros([SEGMENTS, LANES], dtype=tl.float64)
    longest = tl.max(end - begin, 0)
    for first in range(0, longest, LANES):
        at = begin[:, None] + first + tl.arange(0, LANES)[None, :]
        there = at < end[:, None]
        place = tl.load(positions + at, mask=there, other=0)
        value = tl.load(work + place, mask=there, other=0.0)
        if LARGEST:
            total = tl.maximum(total, value)
            broken += tl.where(value < float("inf"), 0.0, float("nan"))
        else:
            total += value
    if LARGEST:
        tl.store(parts + segment, tl.max(total, 1) + tl.sum(broken, 1), mask=inside)
    else:
        tl.store(parts + segment, tl.sum(total, 1), mask=inside)


@triton.jit
def _channel_sum(
    slot: tl.tensor,
    inside: tl.tensor,
    slots: tl.tensor,
    parts: tl.tensor,
    extra: tl.tensor,
    LARGEST: tl.constexpr,
    VARIABLES: tl.constexpr,
    LANES: tl.constexpr,
) -> tl.tensor:
    """N or P of some variables: their segments, and what was summed elsewhere."""
    begin = tl.load(slots + slot, mask=inside, other=0)
    end = tl.load(slots + slot + 1, mask=inside, other=0)
    outside = tl.load(extra + slot, mask=inside, other=0.0)
    total = tl.zeros([VARIABLES, LANES], dtype=tl.float64)
    broken = tl.zeros([VARIABLES, LANES], dtype=tl.float64)
    longest = tl.max(end - begin, 0)
    for first in range(0, longest, LANES):
        at = begin[:, None] + first + tl.arange(0, LANES)[None, :]
        value = tl.load(parts + at, mask=at < end[:, None], other=0.0)
        if LARGEST:
            total = tl.maximum(total, value)
            broken += tl.where(value < float("inf"), 0.0, float("nan"))
        else:
            total += value
    if LARGEST:
        lost = tl.sum(broken, 1) + tl.where(outside < float("inf"), 0.0, float("nan"))
        return tl.maximum(tl.max(total, 1), outside) + lost
    else:
        return tl.sum(total, 1) + outside


@triton.jit
def settle(
    slots: tl.tensor,
    parts: tl.tensor,
    extra: tl.tensor,
    rooms: tl.tensor,
    room_count: tl.tensor,
    held: tl.tensor,
    divisors: tl.tensor,
    reach: tl.tensor,
    settings: tl.tensor,
    log_scales: tl.tensor,
    count: tl.tensor,
    FIRST: tl.constexpr,
    LARGEST: tl.constexpr,
    VARIABLES: tl.constexpr,
    LANES: tl.constexpr,
    ROOMS: tl.constexpr,
) -> None:
    """One cycle's log-scales, log(N / P) / (p A), on top of those there are, no larger than every target has room for."""
    k = tl.program_id(0) * VARIABLES + tl.arange(0, VARIABLES)
    inside = k < count
    negative = _channel_sum(k, inside, slots, parts, extra, LARGEST, VARIABLES, LANES)
    positive = _channel_sum(k + count, inside, slots, parts, extra, LARGEST, VARIABLES, LANES)
    least = tl.zeros([ROOMS], dtype=tl.float64) + float("inf")
    for first in range(0, room_count, ROOMS):
        at = first + tl.arange(0, ROOMS)
        least = tl.minimum(least, tl.load(rooms + at, mask=at < room_count, other=float("inf")))
    room = tl.maximum(tl.min(least, 0), 0.0)
    limit = tl.minimum(room / tl.load(reach + k, mask=inside, other=1.0), tl.load(settings + 1))
    good = (negative > 0.0) & (positive > 0.0) & (negative < float("inf")) & (positive < float("inf"))
    good = good & (tl.load(held + k, mask=inside, other=1) == 0)
    difference = tl.log(tl.where(good, negative, 1.0)) - tl.log(tl.where(good, positive, 1.0))
    total = difference / tl.load(divisors + k, mask=inside, other=1.0)
    if not FIRST:
        total += tl.load(log_scales + k, mask=inside, other=0.0)
    tl.store(log_scales + k, tl.minimum(tl.maximum(total, -limit), limit), mask=inside)


@triton.jit
def fill_factors(
    tiles: tl.tensor, terms: tl.tensor, ids: tl.tensor, log_scales: tl.tensor, factors: tl.tensor, ENTRIES: tl.constexpr
) -> None:
    """The factors of some rows or columns, exp of the sum over terms of coefficient times log-scale.

    `tiles`: offset in `factors`, entries, first and last row of `terms`, and how far into the ids of each term;
    `terms`: offset in `ids`, coefficient.
    """
    tile = tiles + tl.program_id(0).to(tl.int64) * 5
    place, count = tl.load(tile), tl.load(tile + 1)
    begin, end, skipped = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)
    at = tl.arange(0, ENTRIES)
    inside = at < count
    total = tl.zeros([ENTRIES], dtype=tl.float64)
    for term in range(begin, end):
        first, coefficient = tl.load(terms + 2 * term), tl.load(terms + 2 * term + 1)
        some = tl.load(ids + first + skipped + at, mask=inside, other=0)
        total += coefficient.to(tl.float64) * tl.load(log_scales + some, mask=inside, other=0.0)
    tl.store(factors + place + at, tl.exp(total), mask=inside)


@triton.jit
def headroom(
    tiles: tl.tensor,
    room: tl.tensor,
    rooms: tl.tensor,
    count: tl.tensor,
    step: tl.tensor,
    TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """The least growth that any entry of every `step`-th tile has room for; what is not finite already does not count.

    `tiles`: address, width, rows, columns, |power|; `room`: the logarithms of the type's largest number and of the most growth.
    """
    column = tl.arange(0, COLUMNS)
    most, least = tl.load(room), tl.load(room + 1)
    for index in range(tl.program_id(0), count, step):
        tile = tiles + index * 5
        base = tl.load(tile).to(tl.pointer_type(TYPE))
        width, rows, columns = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
        largest = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
        for start in range(0, rows, ROWS):
            row = start + tl.arange(0, ROWS)
            at = row[:, None] * width + column[None, :]
            there = (row < rows)[:, None] & (column < columns)[None, :]
            x = tl.abs(tl.load(base + at, mask=there, other=0.0).to(tl.float64))
            largest = tl.maximum(largest, tl.where(x < float("inf"), x, 0.0))
        size = tl.max(tl.max(largest, 1), 0)
        grown = (most - tl.log(tl.where(size > 0.0, size, 1.0))) / tl.load(tile + 4).to(tl.float64)
        least = tl.minimum(least, tl.where(size > 0.0, grown, least))
    tl.store(rooms + tl.program_id(0), least)


@triton.jit
def scale_tiles(tiles: tl.tensor, factors: tl.tensor, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    """Multiplies a tile by its factors. `tiles`: address, width, rows, columns, offsets of the factors of rows and columns."""
    tile = tiles + tl.program_id(0).to(tl.int64) * 6
    base = tl.load(tile).to(tl.pointer_type(TYPE))
    width, rows, columns = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    row_place, column_place = tl.load(tile + 4), tl.load(tile + 5)
    column = tl.arange(0, COLUMNS)
    there = column < columns
    column_factor = tl.load(factors + column_place + column, mask=column < _present(column_place, columns), other=1.0)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        here = row < rows
        row_factor = tl.load(factors + row_place + row, mask=row < _present(row_place, rows), other=1.0)
        at = base + row[:, None] * width + column[None, :]
        inside = here[:, None] & there[None, :]
        y = tl.load(at, mask=inside, other=0.0).to(tl.float64) * (row_factor[:, None] * column_factor[None, :])
        if TYPE.primitive_bitwidth < 64:
            # 16-bit types are rounded from float32, as PyTorch does it.
            y = y.to(tl.float32)
        tl.store(at, y.to(TYPE), mask=inside)

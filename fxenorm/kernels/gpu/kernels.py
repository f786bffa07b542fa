"""GPU kernels in Triton that walk tables of addresses: a launch does for all tensors of a type what it does for one.

Arithmetic is in float64: a step moves bytes, and squares of float32 weights leave the range of float32. Every sum is taken in a
fixed order, and the only atomics are minima, so that every run gives the same bits. Tables are int64; -1 in one of their offsets:
nothing there.
Importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["combine", "fill_factors", "find_rooms", "reduce_tiles", "scale_tiles", "settle"]


@triton.jit
def _present(place: tl.tensor, count: tl.tensor) -> tl.tensor:
    """Returns how many entries there are at an offset."""
    return tl.where(place >= 0, count, 0)


@triton.jit
def _powered(x: tl.tensor, p: tl.tensor, POWER: tl.constexpr) -> tl.tensor:
    """Returns |x|^p; POWER: p where it is a small integer, 0 for the largest, -1 for any other p."""
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
    """Stores one tile's sums of |w|^p by row and by column.

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
    """Adds sums of tiles to sums of segments, each a piece of what arrives at one N or P; `positions` are those in `work`."""
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
    """Returns N or P of some variables: their segments, and sums taken elsewhere."""
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
    held: tl.tensor,
    divisors: tl.tensor,
    settings: tl.tensor,
    log_scales: tl.tensor,
    count: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    LARGEST: tl.constexpr,
    VARIABLES: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Adds one cycle's log-scales, log(N / P) / (p A), to those there are, within the variables' rooms.

    `rooms`: how far each may go up, and behind them, one further, how far down; the LAST of some cycles makes them wide again.
    """
    k = tl.program_id(0) * VARIABLES + tl.arange(0, VARIABLES)
    inside = k < count
    negative = _channel_sum(k, inside, slots, parts, extra, LARGEST, VARIABLES, LANES)
    positive = _channel_sum(k + count, inside, slots, parts, extra, LARGEST, VARIABLES, LANES)
    most = tl.load(settings + 1)
    up = tl.minimum(tl.load(rooms + k, mask=inside, other=0.0), most)
    down = tl.minimum(tl.load(rooms + count + 1 + k, mask=inside, other=0.0), most)
    if LAST:
        widest = tl.load(settings + 2) + tl.zeros([VARIABLES], dtype=tl.float64)
        tl.store(rooms + k, widest, mask=inside)
        tl.store(rooms + count + 1 + k, widest, mask=inside)
    good = (negative > 0.0) & (positive > 0.0) & (negative < float("inf")) & (positive < float("inf"))
    good = good & (tl.load(held + k, mask=inside, other=1) == 0)
    difference = tl.log(tl.where(good, negative, 1.0)) - tl.log(tl.where(good, positive, 1.0))
    total = difference / tl.load(divisors + k, mask=inside, other=1.0)
    if not FIRST:
        total += tl.load(log_scales + k, mask=inside, other=0.0)
    tl.store(log_scales + k, tl.minimum(tl.maximum(total, -down), up), mask=inside)


@triton.jit
def fill_factors(
    tiles: tl.tensor, terms: tl.tensor, ids: tl.tensor, log_scales: tl.tensor, factors: tl.tensor, ENTRIES: tl.constexpr
) -> None:
    """Stores factors of rows or columns: exp of the sum over terms of coefficient times log-scale.

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
def _offer(
    largest: tl.tensor,
    least: tl.tensor,
    at: tl.tensor,
    there: tl.tensor,
    side: tl.tensor,
    terms: tl.tensor,
    ids: tl.tensor,
    rooms: tl.tensor,
    count: tl.tensor,
    ends: tl.tensor,
    floor: tl.tensor,
    reach: tl.tensor,
) -> None:
    """Keeps the variables of some rows or columns to the room between their entries and the ends of the type's range."""
    most = tl.load(ends + 3) / reach
    above = (tl.load(ends) - tl.log(tl.where(largest > 0.0, largest, 1.0))) / reach
    above = tl.where(largest > 0.0, tl.minimum(tl.maximum(above, 0.0), most), most)
    some = least < float("inf")
    below = (tl.log(tl.where(some, least, 1.0)) - floor) / reach
    below = tl.where(some, tl.minimum(tl.maximum(below, 0.0), most), most)
    begin, end, skipped = tl.load(side), tl.load(side + 1), tl.load(side + 2)
    for term in range(begin, end):
        first, coefficient = tl.load(terms + 2 * term), tl.load(terms + 2 * term + 1)
        k = tl.load(ids + first + skipped + at, mask=there, other=0).to(tl.int64)
        # Of numbers that are not negative, the least has the least bits.
        to = rooms.to(tl.pointer_type(tl.int64))
        up, down = tl.where(coefficient > 0, above, below), tl.where(coefficient > 0, below, above)
        tl.atomic_min(to + k, up.to(tl.int64, bitcast=True), mask=there)
        tl.atomic_min(to + count + 1 + k, down.to(tl.int64, bitcast=True), mask=there)


@triton.jit
def find_rooms(
    tiles: tl.tensor,
    terms: tl.tensor,
    ids: tl.tensor,
    ends: tl.tensor,
    into: tl.tensor,
    count: tl.tensor,
    TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Finds how far the variables of a tile may go up and down; zeros and what is not finite have the most growth.

    `tiles`: address, width, rows, columns, sum of |exponents|, which of the floors, and for rows and for columns the first and
    last row of `terms` and how far into the ids of each term; `ends`: logarithms of the type's largest number, of two floors, and
    of the most growth; `into`: as `settle` reads rooms.
    """
    tile = tiles + tl.program_id(0).to(tl.int64) * 12
    base = tl.load(tile).to(tl.pointer_type(TYPE))
    width, rows, columns = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    reach, floor = tl.load(tile + 4).to(tl.float64), tl.load(ends + 1 + tl.load(tile + 5))
    column = tl.arange(0, COLUMNS)
    largest = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
    least = tl.zeros([ROWS, COLUMNS], dtype=tl.float64) + float("inf")
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        at = row[:, None] * width + column[None, :]
        there = (row < rows)[:, None] & (column < columns)[None, :]
        x = tl.abs(tl.load(base + at, mask=there, other=0.0).to(tl.float64))
        big = tl.where(x < float("inf"), x, 0.0)
        small = tl.where(big > 0.0, x, float("inf"))
        _offer(tl.max(big, 1), tl.min(small, 1), row, row < rows, tile + 6, terms, ids, into, count, ends, floor, reach)
        largest, least = tl.maximum(largest, big), tl.minimum(least, small)
    some = column < columns
    _offer(tl.max(largest, 0), tl.min(least, 0), column, some, tile + 9, terms, ids, into, count, ends, floor, reach)


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
        if TYPE != tl.float64:  # noqa: SIM300 (the constant of Triton 3.2 has no other members, and only it can compare)
            # 16-bit types are rounded from float32, as PyTorch does it.
            y = y.to(tl.float32)
        tl.store(at, y.to(TYPE), mask=inside)

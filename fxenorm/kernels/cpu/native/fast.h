// Sums of float32 and 16-bit weights in float32, 64 bytes at a time: as fast as memory is.
//
// At most 32 numbers of a column, or 64 of a row, are added one after the other before the sum goes on in float64. Squares may
// leave the range of float32 where weights do not: a tile whose sums look like that is summed again in float64.
#pragma once
#include <cmath>
#include <cstring>

#include "combine.h"

namespace {

constexpr i64 ROWS_AT_A_TIME = 32, COLUMNS_AT_A_TIME = 64 * LANES;
// Rows of up to NARROW columns are read one after the other, as they lie, NEXT numbers ahead; wider ones eight at a time.
constexpr i64 NARROW = 4096, NEXT = 2048;
constexpr double SMALLEST_TRUSTED = 1e-26, LARGEST_TRUSTED = 1e38, MOST_FAST = 4.0;   // beyond: float32 has too little range

template <Power P, class V> inline V power_of(V x, double) {
    if (P == TWO) return x * x;
    if (P == THREE) return x * x * size_of(x);
    if (P == FOUR) return (x * x) * (x * x);
    return size_of(x);
}
template <> inline FloatLanes power_of<REAL, FloatLanes>(FloatLanes x, double p) { return RealPower{p}(size_of(x)); }

// A further share of a sum, or of a largest; what is not a number stays.
template <Power P, class V> inline V joined(V a, V b) {
    using I = typename Format<V>::Ints;
    if (P != LARGEST) return a + b;
    const I one = as<I>(a), other = as<I>(b);   // of numbers >= 0 the bits are in their order
    return as<V>(one > other ? one : other);
}

template <Power P> inline double total_of(FloatLanes sum, double total) {
    double quarters[4] = {total, 0.0, 0.0, 0.0};
    for (int i = 0; i < LANES; ++i)
        quarters[i % 4] = P == LARGEST ? larger(static_cast<double>(sum[i]), quarters[i % 4]) : quarters[i % 4] + sum[i];
    if (P == LARGEST) return larger(larger(quarters[0], quarters[1]), larger(quarters[2], quarters[3]));
    return (quarters[0] + quarters[1]) + (quarters[2] + quarters[3]);
}

template <class T> void take_narrow(const typename T::Storage *x, i64 count, float *to) {
    i64 i = 0;
    for (; i + LANES <= count; i += LANES) {
        __builtin_prefetch(x + i + NEXT, 0, 3);
        stored(to + i, narrow<T>(x + i));
    }
    if (i < count) stored(to + i, narrow_rest<T>(x + i, count - i));
}

// R rows of a table, and the sums of its columns; these may be null.
template <Power P, int R> struct Rows {
    const ReduceMatrix &m;
    i64 place, row;   // of the first entry, in the table
    double p;
    float *column;

    // The first of these powers becomes the sum of all; each belongs to the sum of its own row.
    inline void add(FloatLanes *value, FloatLanes *sum, const float *factor) const {
        for (int k = 0; k < R; ++k) {
            if (factor) value[k] = value[k] * factor[k];
            value[k] = power_of<P, FloatLanes>(value[k], p);
            sum[k] = joined<P>(value[k], sum[k]);
        }
        // As a tree: each sum need not wait for the one before.
        for (int half = R / 2; half > 0; half /= 2)
            for (int k = 0; k < half; ++k) value[k] = joined<P>(value[k], value[k + half]);
    }

    // Up to COLUMNS_AT_A_TIME columns: adds to one sum a row.
    inline void some(const float *x, i64 width, i64 count, float *to, double *totals) const {
        FloatLanes sum[R] = {}, value[R];
        float factors[R];   // of their own: what is stored could be those of the table
        for (int k = 0; m.row_factor && k < R; ++k) factors[k] = static_cast<float>(m.row_factor[row + k]);
        const float *factor = m.row_factor ? factors : nullptr;
        i64 j = 0;
        for (; j + LANES <= count; j += LANES) {
            for (int k = 0; k < R; ++k) {
                if (R == 1) __builtin_prefetch(x + j + NEXT, 0, 3);
                value[k] = loaded<FloatLanes>(x + k * width + j);
            }
            add(value, sum, factor);
            if (to) stored(to + j, joined<P>(value[0], loaded<FloatLanes>(to + j)));
        }
        if (j < count) {
            for (int k = 0; k < R; ++k) value[k] = narrow_rest<F32>(x + k * width + j, count - j);
            add(value, sum, factor);
            for (i64 i = 0; to && j + i < count; ++i)
                to[j + i] = P == LARGEST ? static_cast<float>(larger(value[0][i], to[j + i])) : to[j + i] + value[0][i];
        }
        for (int k = 0; k < R; ++k) totals[k] = total_of<P>(sum[k], totals[k]);
    }

    inline void run(i64 columns, double *totals) const {
        alignas(64) float buffer[R * COLUMNS_AT_A_TIME];
        for (i64 start = 0; start < columns; start += COLUMNS_AT_A_TIME) {
            const i64 count = start + COLUMNS_AT_A_TIME < columns ? COLUMNS_AT_A_TIME : columns - start;
            float *to = column ? column + start : nullptr;
            if (m.dtype == 0) {
                some(static_cast<const float *>(m.data) + place + start, m.width, count, to, totals);
                continue;
            }
            for (int k = 0; k < R; ++k) {
                const std::uint16_t *from = static_cast<const std::uint16_t *>(m.data) + place + k * m.width + start;
                if (m.dtype == 2) take_narrow<BF16>(from, count, buffer + k * COLUMNS_AT_A_TIME);
                else take_narrow<F16>(from, count, buffer + k * COLUMNS_AT_A_TIME);
            }
            some(buffer, COLUMNS_AT_A_TIME, count, to, totals);
        }
    }
};

inline void take_columns(const float *column, i64 count, bool first, double *column_part) {
    for (i64 j = 0; j < count; ++j) column_part[j] = first ? column[j] : column_part[j] + column[j];
}

template <Power P, int R>
void add_tile(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    alignas(64) float column[R == 1 ? NARROW : MOST_COLUMNS];
    float *const columns = column_part ? column : nullptr;
    const i64 at_a_time = P == LARGEST ? tile.rows : R * ROWS_AT_A_TIME;   // the largest is exact, however many there are
    for (i64 first = 0; first < tile.rows; first += at_a_time) {
        const i64 last = first + at_a_time < tile.rows ? first + at_a_time : tile.rows;
        if (columns) std::memset(column, 0, sizeof(float) * tile.columns);
        for (i64 r = first; r < last;) {
            double totals[R] = {};
            const i64 row = tile.row + r, place = row * m.width + tile.column, some = r + R <= last ? R : 1;
            if (some == R) Rows<P, R>{m, place, row, p, columns}.run(tile.columns, totals);
            else Rows<P, 1>{m, place, row, p, columns}.run(tile.columns, totals);
            if (row_part) std::memcpy(row_part + r, totals, sizeof(double) * some);
            r += some;
        }
        if (columns) take_columns(column, tile.columns, first == 0, column_part);
    }
}

inline bool trusted(const double *sums, i64 count) {
    bool all = true;
    for (i64 i = 0; i < count; ++i) all &= sums[i] >= SMALLEST_TRUSTED && sums[i] <= LARGEST_TRUSTED;
    return all;
}

template <Power P>
bool reduce_fast(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    if (tile.columns > MOST_COLUMNS) return reduce_accurately(m, tile, p, row_part, column_part);
    if (!column_part || tile.columns <= NARROW) add_tile<P, 1>(m, tile, p, row_part, column_part);
    else add_tile<P, 8>(m, tile, p, row_part, column_part);
    if (P == LARGEST) return true;
    if ((!row_part || trusted(row_part, tile.rows)) && (!column_part || trusted(column_part, tile.columns))) return true;
    return reduce_accurately(m, tile, p, row_part, column_part);
}

// Any type but float64.
inline bool reduce_fast_any(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    if (std::isinf(p)) return reduce_fast<LARGEST>(m, tile, p, row_part, column_part);
    if (p == 2.0) return reduce_fast<TWO>(m, tile, p, row_part, column_part);
    if (p == 1.0) return reduce_fast<ONE>(m, tile, p, row_part, column_part);
    if (p == 3.0) return reduce_fast<THREE>(m, tile, p, row_part, column_part);
    if (p == 4.0) return reduce_fast<FOUR>(m, tile, p, row_part, column_part);
    if (p < MOST_FAST) return reduce_fast<REAL>(m, tile, p, row_part, column_part);
    return reduce_accurately(m, tile, p, row_part, column_part);
}

}  // namespace

// Sums of float32 and 16-bit weights in float32, 64 bytes at a time: as fast as memory is.
//
// At most 32 numbers of a column, or 64 of a row, are added one after the other before the sum goes on in float64. Squares may
// leave the range of float32 where weights do not: a tile whose sums look like that is summed again in float64.
#pragma once
#include <cmath>
#include <cstring>

#include "accurate.h"

namespace {

constexpr i64 LANES = 16, ROWS_AT_A_TIME = 32, COLUMNS_AT_A_TIME = 64 * LANES;
// Rows of up to NARROW columns are read one after the other, as they lie, NEXT numbers ahead; wider ones eight at a time.
constexpr i64 NARROW = 4096, NEXT = 2048, MOST_COLUMNS = 32768;
constexpr double SMALLEST_TRUSTED = 1e-26, LARGEST_TRUSTED = 1e38;

typedef float FloatLanes __attribute__((vector_size(64)));
typedef std::uint32_t Bits32 __attribute__((vector_size(64)));
typedef std::uint16_t Bits16 __attribute__((vector_size(32)));

template <class To, class From> inline To as(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
template <class V, class S> inline V loaded(const S *x) {
    V v;
    std::memcpy(&v, x, sizeof(V));
    return v;
}
template <class V, class S> inline void stored(S *x, V v) { std::memcpy(x, &v, sizeof(V)); }

template <class T> struct Lanes;
template <> struct Lanes<F32> {
    static FloatLanes load(const float *x) { return loaded<FloatLanes>(x); }
};
template <> struct Lanes<BF16> {
    static FloatLanes load(const std::uint16_t *x) {
        return as<FloatLanes>(__builtin_convertvector(loaded<Bits16>(x), Bits32) << 16);
    }
};

inline FloatLanes size_of(FloatLanes x) { return as<FloatLanes>(as<Bits32>(x) & 0x7fffffffu); }
inline float size_of(float x) { return std::fabs(x); }

template <Power P, class V> inline V power_of(V x) {
    if (P == TWO) return x * x;
    if (P == FOUR) return (x * x) * (x * x);
    return size_of(x);
}

inline double total_of(FloatLanes sum, double total) {
    float parts[LANES];
    stored(parts, sum);
    double quarters[4] = {total, 0.0, 0.0, 0.0};
    for (int i = 0; i < LANES; ++i) quarters[i % 4] += parts[i];
    return (quarters[0] + quarters[1]) + (quarters[2] + quarters[3]);
}

// R rows of some columns: adds to the columns' sums, and to one sum a row.
template <class T, Power P, int R, bool COLUMNS>
inline void add_rows(const typename T::Storage *base, i64 width, i64 columns, const double *factor, float *column, double *row) {
    float f[R];
    for (int k = 0; k < R; ++k) f[k] = factor ? static_cast<float>(factor[k]) : 1.0f;
    for (i64 start = 0; start < columns; start += COLUMNS_AT_A_TIME) {
        const i64 stop = start + COLUMNS_AT_A_TIME < columns ? start + COLUMNS_AT_A_TIME : columns;
        FloatLanes sum[R];
        float rest[R];
        for (int k = 0; k < R; ++k) {
            sum[k] = FloatLanes{};
            rest[k] = 0;
        }
        i64 j = start;
        for (; j + LANES <= stop; j += LANES) {
            FloatLanes value[R];
            for (int k = 0; k < R; ++k) {
                const typename T::Storage *x = base + k * width + j;
                if (R == 1) __builtin_prefetch(x + NEXT, 0, 3);
                value[k] = Lanes<T>::load(x);
                if (factor) value[k] = value[k] * f[k];
                value[k] = power_of<P>(value[k]);
                sum[k] = sum[k] + value[k];
            }
            if (!COLUMNS) continue;
            // Added as a tree: each sum need not wait for the one before.
            for (int half = R / 2; half > 0; half /= 2)
                for (int k = 0; k < half; ++k) value[k] = value[k] + value[k + half];
            stored(column + j, loaded<FloatLanes>(column + j) + value[0]);
        }
        for (; j < stop; ++j) {
            for (int k = 0; k < R; ++k) {
                float value = static_cast<float>(T::load(base[k * width + j]));
                if (factor) value = value * f[k];
                value = power_of<P>(value);
                rest[k] += value;
                if (COLUMNS) column[j] += value;
            }
        }
        for (int k = 0; k < R; ++k) row[k] = total_of(sum[k], row[k] + rest[k]);
    }
}

template <class T, Power P, int R, bool COLUMNS>
void add_tile(const ReduceMatrix &m, const ReduceTile &tile, double *row_part, double *column_part) {
    alignas(64) float column[COLUMNS ? (R == 1 ? NARROW : MOST_COLUMNS) : 1];
    const typename T::Storage *base = static_cast<const typename T::Storage *>(m.data) + tile.row * m.width + tile.column;
    const double *factor = m.row_factor ? m.row_factor + tile.row : nullptr;
    const i64 columns = tile.columns;
    for (i64 first = 0; first < tile.rows; first += R * ROWS_AT_A_TIME) {
        const i64 last = first + R * ROWS_AT_A_TIME < tile.rows ? first + R * ROWS_AT_A_TIME : tile.rows;
        if (COLUMNS) std::memset(column, 0, sizeof(float) * columns);
        i64 r = first;
        for (; r + R <= last; r += R) {
            double row[R] = {};
            add_rows<T, P, R, COLUMNS>(base + r * m.width, m.width, columns, factor ? factor + r : nullptr, column, row);
            if (row_part) std::memcpy(row_part + r, row, sizeof(row));
        }
        for (; r < last; ++r) {
            double row[1] = {};
            add_rows<T, P, 1, COLUMNS>(base + r * m.width, m.width, columns, factor ? factor + r : nullptr, column, row);
            if (row_part) row_part[r] = row[0];
        }
        if (COLUMNS && first == 0)
            for (i64 j = 0; j < columns; ++j) column_part[j] = column[j];
        else if (COLUMNS)
            for (i64 j = 0; j < columns; ++j) column_part[j] += column[j];
    }
}

inline bool trusted(const double *sums, i64 count) {
    bool all = true;
    for (i64 i = 0; i < count; ++i) all &= sums[i] >= SMALLEST_TRUSTED && sums[i] <= LARGEST_TRUSTED;
    return all;
}

template <class T, Power P>
bool reduce_fast(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    if (tile.columns > MOST_COLUMNS) return reduce_any<T>(m, tile, p, row_part, column_part);
    if (!column_part) add_tile<T, P, 1, false>(m, tile, row_part, nullptr);
    else if (tile.columns <= NARROW) add_tile<T, P, 1, true>(m, tile, row_part, column_part);
    else add_tile<T, P, 8, true>(m, tile, row_part, column_part);
    if ((!row_part || trusted(row_part, tile.rows)) && (!column_part || trusted(column_part, tile.columns))) return true;
    return reduce_any<T>(m, tile, p, row_part, column_part);
}

template <class T>
bool reduce_fast_any(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    if (p == 2.0) return reduce_fast<T, TWO>(m, tile, p, row_part, column_part);
    if (p == 1.0) return reduce_fast<T, ONE>(m, tile, p, row_part, column_part);
    if (p == 4.0) return reduce_fast<T, FOUR>(m, tile, p, row_part, column_part);
    return reduce_any<T>(m, tile, p, row_part, column_part);
}

}  // namespace

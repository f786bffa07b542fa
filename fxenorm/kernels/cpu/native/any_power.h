// Sums of |w|^p for any p, in float64. Beyond p = 8 the sums are base-2 logarithms, and no channel is too small or too large.
#pragma once
#include <cmath>

#include "powers.h"
#include "range.h"
#include "tables.h"

namespace {

// Up to MOST_LINEAR sums are added themselves; up to MOST_UNSCALED it is worth while to try whether they stay in range.
constexpr double MOST_LINEAR = 8.0, MOST_UNSCALED = 40.0;
inline bool adds_logs(double p) { return p > MOST_LINEAR && !std::isinf(p); }

constexpr i64 ROWS_TOGETHER = 4, CHUNK = 512;

template <class T> void take_sizes(const typename T::Storage *x, i64 count, double factor, double *to) {
    i64 i = 0;
    for (; i + WIDE_LANES <= count; i += WIDE_LANES) stored(to + i, size_of(wide<T>(x + i) * factor));
    if (i < count) stored(to + i, size_of(wide_rest<T>(x + i, count - i) * factor));
}

// The sizes of a tile's entries, some of a row at a time; behind the last there are zeros up to a multiple of eight.
struct Sizes {
    const ReduceMatrix &m;
    const ReduceTile &tile;
    void take(i64 row, i64 column, i64 count, double *to) const {
        const i64 place = (tile.row + row) * m.width + tile.column + column;
        const double factor = m.row_factor ? m.row_factor[tile.row + row] : 1.0;
        switch (m.dtype) {
        case 0: return take_sizes<F32>(static_cast<const float *>(m.data) + place, count, factor, to);
        case 1: return take_sizes<F64>(static_cast<const double *>(m.data) + place, count, factor, to);
        case 2: return take_sizes<BF16>(static_cast<const std::uint16_t *>(m.data) + place, count, factor, to);
        default: return take_sizes<F16>(static_cast<const std::uint16_t *>(m.data) + place, count, factor, to);
        }
    }
    bool good(const double *row_part, const double *column_part) const {
        switch (m.dtype) {
        case 0: return reliable<F32>(m, tile, row_part, column_part);
        case 1: return reliable<F64>(m, tile, row_part, column_part);
        case 2: return reliable<BF16>(m, tile, row_part, column_part);
        default: return reliable<F16>(m, tile, row_part, column_part);
        }
    }
};

inline i64 at_most(i64 count, i64 most) { return count < most ? count : most; }

template <class Exponent> void add_powers(const Sizes &sizes, Exponent power, double *row_part, double *column_part) {
    const i64 rows = sizes.tile.rows, columns = sizes.tile.columns;
    alignas(64) double x[ROWS_TOGETHER][CHUNK];
    for (i64 j = 0; column_part && j < columns; ++j) column_part[j] = 0.0;
    for (i64 r = 0; r < rows; r += ROWS_TOGETHER) {
        const i64 some = at_most(rows - r, ROWS_TOGETHER);
        double row[ROWS_TOGETHER] = {};
        for (i64 start = 0; start < columns; start += CHUNK) {
            const i64 count = at_most(columns - start, CHUNK);
            WideLanes sum[ROWS_TOGETHER] = {};
            for (i64 k = 0; k < some; ++k) sizes.take(r + k, start, count, x[k]);
            for (i64 j = 0; j < count; j += WIDE_LANES) {
                WideLanes all{};
                for (i64 k = 0; k < some; ++k) {
                    const WideLanes value = power(loaded<WideLanes>(x[k] + j));
                    sum[k] = sum[k] + value;
                    all = all + value;
                }
                if (!column_part) continue;
                double *to = column_part + start + j;
                if (count - j >= WIDE_LANES) stored(to, loaded<WideLanes>(to) + all);
                else
                    for (i64 i = 0; i < count - j; ++i) to[i] += all[i];
            }
            for (i64 k = 0; k < some; ++k) row[k] += total_of(sum[k]);
        }
        for (i64 k = 0; row_part && k < some; ++k) row_part[r + k] = row[k];
    }
}

// The larger of each two, what is not a number included.
inline WideLanes larger_of(WideLanes a, WideLanes b) { return chosen<WideLanes>(as<Ints64>(a) > as<Ints64>(b), a, b); }

// log2 of sum (x / largest)^p, and the largest to the power of p again; what is 0 or not finite has no share in it.
inline WideLanes scaled_logs(WideLanes sum, WideLanes largest, double p) {
    const WideLanes log = log2_of<WideLanes>(largest);
    return chosen<WideLanes>((largest > 0.0) & (largest < HUGE_VAL), log2_of<WideLanes>(sum) + log * p, log);
}

// Logarithms of sums, each of what has been divided by its largest; each entry is read four times.
template <class Exponent> void add_scaled_powers(const Sizes &sizes, Exponent power, double p, double *row_part, double *column_part) {
    const i64 rows = sizes.tile.rows, columns = sizes.tile.columns;
    alignas(64) double x[CHUNK], most[CHUNK], sum[CHUNK];
    for (i64 r = 0; row_part && r < rows; ++r) {
        WideLanes largest{}, total{};
        for (int pass = 0; pass < 2; ++pass) {
            for (i64 start = 0; start < columns; start += CHUNK) {
                const i64 count = at_most(columns - start, CHUNK);
                sizes.take(r, start, count, x);
                for (i64 j = 0; j < count; j += WIDE_LANES) {
                    if (pass == 0) largest = larger_of(loaded<WideLanes>(x + j), largest);
                    else total = total + power(loaded<WideLanes>(x + j) / largest);
                }
            }
            for (i64 i = 0; pass == 0 && i < WIDE_LANES; ++i) largest = larger_of(all_of<WideLanes>(largest[i]), largest);
        }
        row_part[r] = scaled_logs(all_of<WideLanes>(total_of(total)), largest, p)[0];
    }
    for (i64 start = 0; column_part && start < columns; start += CHUNK) {
        const i64 count = at_most(columns - start, CHUNK);
        std::memset(most, 0, sizeof(most));
        std::memset(sum, 0, sizeof(sum));
        for (i64 r = 0; r < 2 * rows; ++r) {
            sizes.take(r % rows, start, count, x);
            for (i64 j = 0; j < count; j += WIDE_LANES) {
                const WideLanes value = loaded<WideLanes>(x + j), largest = loaded<WideLanes>(most + j);
                if (r < rows) stored(most + j, larger_of(value, largest));
                else stored(sum + j, loaded<WideLanes>(sum + j) + power(value / largest));
            }
        }
        for (i64 j = 0; j < count; j += WIDE_LANES)
            stored(sum + j, scaled_logs(loaded<WideLanes>(sum + j), loaded<WideLanes>(most + j), p));
        std::memcpy(column_part + start, sum, sizeof(double) * count);
    }
}

template <class Exponent>
bool reduce_with(const Sizes &sizes, Exponent power, double p, double *row_part, double *column_part) {
    bool good = false;
    if (p <= MOST_UNSCALED) {
        add_powers(sizes, power, row_part, column_part);
        good = sizes.good(row_part, column_part);
        if (!adds_logs(p)) return good;
    }
    if (good) {
        if (row_part) take_logs(row_part, sizes.tile.rows);
        if (column_part) take_logs(column_part, sizes.tile.columns);
    } else {
        add_scaled_powers(sizes, power, p, row_part, column_part);
    }
    return true;
}

// Whether the sums can be relied on.
bool reduce_power(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    const Sizes sizes{m, tile};
    if (is_whole(p)) return reduce_with(sizes, WholePower{static_cast<i64>(p)}, p, row_part, column_part);
    return reduce_with(sizes, RealPower{p}, p, row_part, column_part);
}

}  // namespace

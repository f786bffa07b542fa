// Sums in float64, each power rounded once or nearly so: the same as the eager executor's, but for the order of additions.
#pragma once
#include <cmath>

#include "any_power.h"
#include "number_types.h"
#include "range.h"
#include "tables.h"

namespace {

enum Power { ONE, TWO, THREE, FOUR, REAL, LARGEST };

template <Power P> inline double powered(double x) {
    if (P == TWO) return x * x;
    if (P == FOUR) return (x * x) * (x * x);
    return std::fabs(x);
}
inline double larger(double a, double b) { return ((a > b) | (a != a)) ? a : b; }   // keeps NaN in b

// Asks for entries that a loop will come to: one stream of addresses alone does not keep the memory busy.
constexpr i64 AHEAD = 4096, READ_STEP = 64, WRITE_STEP = 64;
template <bool WRITE, class S> inline void ask(const S *x) {
#if defined(__GNUC__) || defined(__clang__)
    for (i64 j = 0; j < (WRITE ? WRITE_STEP : READ_STEP); j += 64 / static_cast<i64>(sizeof(S))) __builtin_prefetch(x + j, WRITE ? 1 : 0, 3);
#else
    (void)x;
#endif
}

template <class T, Power P>
inline void four_rows(const typename T::Storage *a, const typename T::Storage *b, const typename T::Storage *c,
                      const typename T::Storage *d, double fa, double fb, double fc, double fd, i64 count,
                      double *column, double &sum_a, double &sum_b, double &sum_c, double &sum_d) {
    double sa = sum_a, sb = sum_b, sc = sum_c, sd = sum_d;
#pragma omp simd reduction(+ : sa, sb, sc, sd)
    for (i64 j = 0; j < count; ++j) {
        const double xa = powered<P>(T::load(a[j]) * fa), xb = powered<P>(T::load(b[j]) * fb);
        const double xc = powered<P>(T::load(c[j]) * fc), xd = powered<P>(T::load(d[j]) * fd);
        sa += xa;
        sb += xb;
        sc += xc;
        sd += xd;
        column[j] += (xa + xb) + (xc + xd);
    }
    sum_a = sa;
    sum_b = sb;
    sum_c = sc;
    sum_d = sd;
}

template <class T, Power P>
void reduce_tile(const ReduceMatrix &m, const ReduceTile &tile, double *row_part, double *column_part) {
    using S = typename T::Storage;
    const i64 columns = tile.columns;
    if (column_part)
        for (i64 j = 0; j < columns; ++j) column_part[j] = 0.0;
    const S *base = static_cast<const S *>(m.data) + tile.row * m.width + tile.column;
    const double *factor = m.row_factor ? m.row_factor + tile.row : nullptr;
    // The same columns some rows further down, so that no row that has been read already is asked for.
    const i64 ahead = 4 * m.width * ((AHEAD + 4 * m.width - 1) / (4 * m.width));
    i64 r = 0;
    if (P != LARGEST) {
        for (; column_part && r + 4 <= tile.rows; r += 4) {
            const S *a = base + r * m.width, *b = a + m.width, *c = b + m.width, *d = c + m.width;
            const double fa = factor ? factor[r] : 1.0, fb = factor ? factor[r + 1] : 1.0;
            const double fc = factor ? factor[r + 2] : 1.0, fd = factor ? factor[r + 3] : 1.0;
            double sa = 0.0, sb = 0.0, sc = 0.0, sd = 0.0;
            i64 j = 0;
            for (; j + READ_STEP <= columns; j += READ_STEP) {
                ask<false>(a + j + ahead);
                ask<false>(b + j + ahead);
                ask<false>(c + j + ahead);
                ask<false>(d + j + ahead);
                four_rows<T, P>(a + j, b + j, c + j, d + j, fa, fb, fc, fd, READ_STEP, column_part + j, sa, sb, sc, sd);
            }
            four_rows<T, P>(a + j, b + j, c + j, d + j, fa, fb, fc, fd, columns - j, column_part + j, sa, sb, sc, sd);
            if (row_part) {
                row_part[r] = sa;
                row_part[r + 1] = sb;
                row_part[r + 2] = sc;
                row_part[r + 3] = sd;
            }
        }
    }
    for (; r < tile.rows; ++r) {
        const S *a = base + r * m.width;
        const double fa = factor ? factor[r] : 1.0;
        double sum = 0.0, broken = 0.0;
        if (P == LARGEST) {
#pragma omp simd reduction(max : sum) reduction(+ : broken)
            for (i64 j = 0; j < columns; ++j) {
                const double x = std::fabs(T::load(a[j]) * fa);
                sum = x > sum ? x : sum;
                broken += x - x;
            }
            if (column_part) {
#pragma omp simd
                for (i64 j = 0; j < columns; ++j) column_part[j] = larger(std::fabs(T::load(a[j]) * fa), column_part[j]);
            }
            if (broken != 0.0) sum = broken;
        } else if (column_part) {
#pragma omp simd reduction(+ : sum)
            for (i64 j = 0; j < columns; ++j) {
                const double x = powered<P>(T::load(a[j]) * fa);
                sum += x;
                column_part[j] += x;
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (i64 j = 0; j < columns; ++j) sum += powered<P>(T::load(a[j]) * fa);
        }
        if (row_part) row_part[r] = sum;
    }
}

// Whether the sums can be relied on.
template <class T>
bool reduce_any(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    if (std::isinf(p)) {
        reduce_tile<T, LARGEST>(m, tile, row_part, column_part);
        return true;
    }
    if (p == 2.0) reduce_tile<T, TWO>(m, tile, row_part, column_part);
    else if (p == 1.0) reduce_tile<T, ONE>(m, tile, row_part, column_part);
    else if (p == 4.0) reduce_tile<T, FOUR>(m, tile, row_part, column_part);
    else return reduce_power(m, tile, p, row_part, column_part);
    return reliable<T>(m, tile, row_part, column_part);
}

inline bool reduce_accurately(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    switch (m.dtype) {
    case 0: return reduce_any<F32>(m, tile, p, row_part, column_part);
    case 1: return reduce_any<F64>(m, tile, p, row_part, column_part);
    case 2: return reduce_any<BF16>(m, tile, p, row_part, column_part);
    default: return reduce_any<F16>(m, tile, p, row_part, column_part);
    }
}

}  // namespace

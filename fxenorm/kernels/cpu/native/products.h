// Products of tables of |w|^p with a vector from either side, in float64: every number is read once for both.
#pragma once
#include <cmath>
#include <cstring>

#include "accurate.h"

namespace {

// Columns at a time: their weights and their sums, 16 KiB of float64, stay in a first-level cache.
constexpr i64 COLUMNS_OF_A_PRODUCT = 1024, ROWS_OF_A_PRODUCT = 4;

template <Power P> inline double power_at(double x, double p) {
    if (P == THREE) return std::fabs(x) * (x * x);
    return P == REAL ? std::pow(std::fabs(x), p) : powered<P>(x);
}

// Adds R rows of some columns, times the rows' weights, to the columns' sums, and times the columns' weights to the rows' sums.
template <class T, Power P, int R>
inline void multiply_rows(const typename T::Storage *base, i64 width, i64 count, double p, const double *of_rows,
                          const double *of_columns, double *rows, double *columns) {
    using S = typename T::Storage;
    const S *a = base, *b = base + (R > 1 ? width : 0), *c = base + (R > 2 ? 2 * width : 0), *d = base + (R > 3 ? 3 * width : 0);
    const double fa = of_rows[0], fb = R > 1 ? of_rows[1] : 0.0, fc = R > 2 ? of_rows[2] : 0.0, fd = R > 3 ? of_rows[3] : 0.0;
    double sa = 0.0, sb = 0.0, sc = 0.0, sd = 0.0;
#pragma omp simd reduction(+ : sa, sb, sc, sd)
    for (i64 j = 0; j < count; ++j) {
        const double weight = of_columns[j];
        const double xa = power_at<P>(T::load(a[j]), p);
        double column = xa * fa;
        sa += xa * weight;
        if (R > 1) {
            const double xb = power_at<P>(T::load(b[j]), p), xc = power_at<P>(T::load(c[j]), p), xd = power_at<P>(T::load(d[j]), p);
            sb += xb * weight;
            sc += xc * weight;
            sd += xd * weight;
            column += xb * fb + (xc * fc + xd * fd);
        }
        columns[j] += column;
    }
    rows[0] += sa;
    if (R > 1) {
        rows[1] += sb;
        rows[2] += sc;
        rows[3] += sd;
    }
}

// One tile: rows of a table from the first to the last column. Its rows' sums are whole, its columns' are a part.
template <class T, Power P>
void multiply_tile(const ProductTable &t, const ProductTile &tile, double p, const double *inner, double *sums, double *part) {
    constexpr int R = ROWS_OF_A_PRODUCT;
    const typename T::Storage *base = static_cast<const typename T::Storage *>(t.data) + tile.row * t.stride;
    const double *of_rows = inner + t.place + tile.row, *of_columns = inner + t.place + t.rows;
    double *rows = sums + t.place + tile.row;
    for (i64 r = 0; r < tile.rows; ++r) rows[r] = 0.0;
    for (i64 j = 0; j < t.width; ++j) part[j] = 0.0;
    for (i64 start = 0; start < t.width; start += COLUMNS_OF_A_PRODUCT) {
        const i64 count = t.width - start < COLUMNS_OF_A_PRODUCT ? t.width - start : COLUMNS_OF_A_PRODUCT;
        i64 r = 0;
        for (; r + R <= tile.rows; r += R) {
            const typename T::Storage *x = base + r * t.stride + start;
            if (r + 2 * R <= tile.rows)
                for (int k = R; k < 2 * R; ++k)
                    for (i64 j = 0; j < count; j += READ_STEP) ask<false>(x + k * t.stride + j);
            multiply_rows<T, P, R>(x, t.stride, count, p, of_rows + r, of_columns + start, rows + r, part + start);
        }
        for (; r < tile.rows; ++r)
            multiply_rows<T, P, 1>(base + r * t.stride + start, t.stride, count, p, of_rows + r, of_columns + start, rows + r, part + start);
    }
}

template <class T>
void multiply_any(const ProductTable &t, const ProductTile &tile, double p, const double *inner, double *sums, double *part) {
    if (t.is_power || p == 1.0) multiply_tile<T, ONE>(t, tile, p, inner, sums, part);
    else if (p == 2.0) multiply_tile<T, TWO>(t, tile, p, inner, sums, part);
    else if (p == 3.0) multiply_tile<T, THREE>(t, tile, p, inner, sums, part);
    else if (p == 4.0) multiply_tile<T, FOUR>(t, tile, p, inner, sums, part);
    else multiply_tile<T, REAL>(t, tile, p, inner, sums, part);
}

void multiply(const ProductTable &t, const ProductTile &tile, double p, const double *inner, double *sums, double *work) {
    double *part = work + tile.part;
    switch (t.dtype) {
    case 0: return multiply_any<F32>(t, tile, p, inner, sums, part);
    case 1: return multiply_any<F64>(t, tile, p, inner, sums, part);
    case 2: return multiply_any<BF16>(t, tile, p, inner, sums, part);
    default: return multiply_any<F16>(t, tile, p, inner, sums, part);
    }
}

// The sums of a table's columns from those of its tiles, in their order.
void add_parts(const ProductTable &t, const ProductTile *tiles, const double *work, double *sums) {
    double *columns = sums + t.place + t.rows;
    for (i64 j = 0; j < t.width; ++j) columns[j] = 0.0;
    for (i64 i = t.first_tile; i < t.last_tile; ++i)
        for (i64 j = 0; j < t.width; ++j) columns[j] += work[tiles[i].part + j];
}

}  // namespace

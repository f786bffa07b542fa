// Products in place, row by row; where one would leave its room, what was done of the row is undone and the rest is left.
#pragma once
#include <cmath>
#include <cstring>

#include "accurate.h"

namespace {

// Whether all products of some entries stay in their room; what is 0 or not finite does, and what moves towards its room.
template <class T, class Number>
bool stays(const ScaleMatrix &m, const typename T::Storage *x, i64 count, Number factor, const Number *column) {
    for (i64 j = 0; j < count; ++j) {
        const double f = static_cast<double>(factor) * (column ? static_cast<double>(column[j]) : 1.0);
        const double size = std::fabs(T::load(x[j])), product = size * f;
        if (!(size > 0.0 && size < HUGE_VAL)) continue;
        if ((product < m.smallest && f < 1.0) || (product > m.largest && f > 1.0)) return false;
    }
    return true;
}

// Divides what has been multiplied.
template <class T, class Number>
void divide_row(typename T::Storage *x, i64 count, Number factor, const Number *column) {
    const double f = static_cast<double>(factor);
    for (i64 j = 0; j < count; ++j) x[j] = T::store(T::load(x[j]) / (column ? f * static_cast<double>(column[j]) : f));
}

constexpr i64 AT_ONCE = 256;

// Multiplies some entries of a row. False, and nothing has changed, where `within` and a product would leave its room.
template <class T, class Number, bool COLUMNS>
bool scale_some(const ScaleMatrix &m, typename T::Storage *x, i64 count, Number factor, const Number *column, bool within) {
    typename T::Storage before[AT_ONCE];
    const Number smallest = static_cast<Number>(m.smallest), largest = static_cast<Number>(m.largest);
    Number least = largest, most = 0;
    for (i64 j = 0; j < count; j += WRITE_STEP) ask<true>(x + j + AHEAD);
#pragma omp simd reduction(min : least) reduction(max : most)
    for (i64 j = 0; j < count; ++j) {
        const Number value = static_cast<Number>(T::load(x[j])), product = COLUMNS ? value * (factor * column[j]) : value * factor;
        const Number size = std::fabs(product), some = value == Number(0) ? largest : size;
        before[j] = x[j];
        x[j] = T::store(product);
        least = some < least ? some : least;
        most = size > most ? size : most;
    }
    if (!within || (least >= smallest && most <= largest)) return true;
    if (stays<T>(m, before, count, factor, COLUMNS ? column : nullptr)) return true;
    std::memcpy(x, before, sizeof(before[0]) * count);
    return false;
}

template <class T, class Number, bool COLUMNS>
bool scale_row(const ScaleMatrix &m, typename T::Storage *x, i64 count, Number factor, const Number *column, bool within) {
    for (i64 j = 0; j < count; j += AT_ONCE) {
        const i64 some = count - j < AT_ONCE ? count - j : AT_ONCE;
        if (scale_some<T, Number, COLUMNS>(m, x + j, some, factor, COLUMNS ? column + j : nullptr, within)) continue;
        divide_row<T>(x, j, factor, COLUMNS ? column : nullptr);
        return false;
    }
    return true;
}

template <class Number> inline bool all_one(const Number *factors, i64 count) {
    for (i64 j = 0; j < count; ++j)
        if (factors[j] != Number(1)) return false;
    return true;
}

// Returns the number of rows done; with `within`, fewer than all where a product would leave its room.
template <class T, class Number>
i64 scale_tile(const ScaleMatrix &m, const ScaleTile &tile, const Number *factors, bool within) {
    typename T::Storage *x = static_cast<typename T::Storage *>(m.data) + tile.row * m.width + tile.column;
    const Number *row = m.row_factor < 0 ? nullptr : factors + m.row_factor + tile.row;
    const Number *column = m.column_factor < 0 ? nullptr : factors + m.column_factor + tile.segment * m.width + tile.column;
    if (column && all_one(column, tile.columns)) column = nullptr;
    for (i64 r = 0; r < tile.rows; ++r, x += m.width) {
        const Number factor = row ? row[r] : Number(1);
        if (!column && factor == Number(1)) continue;   // read and write nothing
        const bool good = column ? scale_row<T, Number, true>(m, x, tile.columns, factor, column, within)
                                 : scale_row<T, Number, false>(m, x, tile.columns, factor, nullptr, within);
        if (!good) return r;
    }
    return tile.rows;
}

i64 scale_any(const ScaleMatrix &m, const ScaleTile &tile, const double *factors, bool within) {
    switch (m.dtype) {
    case 0: return scale_tile<F32>(m, tile, factors, within);
    case 1: return scale_tile<F64>(m, tile, factors, within);
    case 2: return scale_tile<BF16>(m, tile, factors, within);
    default: return scale_tile<F16>(m, tile, factors, within);
    }
}

template <class T> void divide_tile(const ScaleMatrix &m, const ScaleTile &tile, const double *factors, i64 rows) {
    typename T::Storage *x = static_cast<typename T::Storage *>(m.data) + tile.row * m.width + tile.column;
    const double *row = m.row_factor < 0 ? nullptr : factors + m.row_factor + tile.row;
    const double *column = m.column_factor < 0 ? nullptr : factors + m.column_factor + tile.segment * m.width + tile.column;
    for (i64 r = 0; r < rows; ++r, x += m.width) divide_row<T>(x, tile.columns, row ? row[r] : 1.0, column);
}

// Undoes the products of some rows, but for a rounding.
void divide_any(const ScaleMatrix &m, const ScaleTile &tile, const double *factors, i64 rows) {
    switch (m.dtype) {
    case 0: return divide_tile<F32>(m, tile, factors, rows);
    case 1: return divide_tile<F64>(m, tile, factors, rows);
    case 2: return divide_tile<BF16>(m, tile, factors, rows);
    default: return divide_tile<F16>(m, tile, factors, rows);
    }
}

}  // namespace

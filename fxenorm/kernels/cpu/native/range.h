// Whether sums of powers have left the range of float64: what has is left to others.
#pragma once
#include <cmath>

#include "number_types.h"
#include "tables.h"

namespace {

// Sums of powers outside of this may have lost some to the ends of a float64, or lose them once layer weights come to it.
constexpr double LEAST_RELIABLE = 1e-170, MOST_RELIABLE = 1e170;

inline bool reliable(double sum) { return sum >= LEAST_RELIABLE && sum <= MOST_RELIABLE; }

template <class T> bool is_zero(typename T::Storage x) { return T::load(x) == 0.0; }

// Whether all of a tile's sums are reliable, or those of nothing but zeros.
template <class T> bool reliable(const ReduceMatrix &m, const ReduceTile &tile, const double *row_part, const double *column_part) {
    const typename T::Storage *base = static_cast<const typename T::Storage *>(m.data) + tile.row * m.width + tile.column;
    const double *factor = m.row_factor ? m.row_factor + tile.row : nullptr;
    for (i64 r = 0; row_part && r < tile.rows; ++r) {
        if (reliable(row_part[r]) || (factor && factor[r] == 0.0)) continue;
        for (i64 j = 0; j < tile.columns; ++j)
            if (!is_zero<T>(base[r * m.width + j])) return false;
    }
    for (i64 j = 0; column_part && j < tile.columns; ++j) {
        if (reliable(column_part[j])) continue;
        for (i64 r = 0; r < tile.rows; ++r)
            if (!(factor && factor[r] == 0.0) && !is_zero<T>(base[r * m.width + j])) return false;
    }
    return true;
}

}  // namespace

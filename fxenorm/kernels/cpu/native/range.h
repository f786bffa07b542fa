// Whether sums of powers have left the range of float64: what has is left to others.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

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

// The least and the largest of some bits without their sign; what is 0 becomes the largest of all before the least is taken.
template <class Bits> void ends_of_bits(const Bits *x, i64 count, Bits &least, Bits &most) {
    typedef Bits Lanes __attribute__((vector_size(64)));
    constexpr i64 WIDTH = 64 / sizeof(Bits);
    const Bits mask = static_cast<Bits>(static_cast<Bits>(~Bits(0)) >> 1);
    Lanes low = Lanes{} - 1, high = Lanes{};
    i64 i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        Lanes size;
        std::memcpy(&size, x + i, sizeof(size));
        size &= mask;
        const Lanes before = size - 1, lower = (Lanes)(before < low), higher = (Lanes)(size > high);
        low = (before & lower) | (low & ~lower);
        high = (size & higher) | (high & ~higher);
    }
    for (i64 k = 0; k < WIDTH; ++k) {
        least = low[k] < least ? low[k] : least;
        most = high[k] > most ? high[k] : most;
    }
    for (; i < count; ++i) {
        const Bits size = static_cast<Bits>(x[i] & mask), before = static_cast<Bits>(size - 1);
        most = size > most ? size : most;
        least = before < least ? before : least;
    }
}

// Without their sign, the bits of numbers are in the order of their sizes.
template <class T, class Bits> void find_ends(const void *data, i64 count, double *out, int threads) {
    const Bits *x = static_cast<const Bits *>(data);
    constexpr i64 SOME = 1 << 16;
    Bits least = static_cast<Bits>(~Bits(0)), most = 0;
#pragma omp parallel for schedule(static) reduction(min : least) reduction(max : most) num_threads(threads) if (threads > 1)
    for (i64 start = 0; start < count; start += SOME) ends_of_bits(x + start, count - start < SOME ? count - start : SOME, least, most);
    const Bits ends[2] = {static_cast<Bits>(least + 1), most};
    for (int i = 0; i < 2; ++i) {
        typename T::Storage value;
        std::memcpy(&value, &ends[i], sizeof(value));
        out[i] = T::load(value);
    }
}

}  // namespace

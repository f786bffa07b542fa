// Looks at all entries of tables after a rescaling: those above a value, and the largest of each row and column.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "number_types.h"
#include "tables.h"

namespace {

// Columns that are asked together whether any of them is found, which is quick; few are.
constexpr i64 COLUMNS_AT_A_LOOK = 32;

// Numbers that are found, in an order: the places of their row and of their column in the vector of all lines, and their logarithms.
struct Found {
    i64 *rows, *columns;
    double *logs;
    i64 count = 0;

    void add(i64 row, i64 column, double log) {
        rows[count] = row;
        columns[count] = column;
        logs[count++] = log;
    }
};

// Weights, which factors multiply.
template <class T> struct Weights {
    using S = typename T::Storage;
    static double moved(S x, double row, double column) { return std::fabs(T::load(x)) * row * column; }
    static double log_of(S x) { return std::log(std::fabs(T::load(x))); }
    static double nothing() { return 0.0; }
};
// Logarithms, to which others are added.
struct Logarithms {
    using S = double;
    static double moved(double x, double row, double column) { return x + row + column; }
    static double log_of(double x) { return x; }
    static double nothing() { return -INFINITY; }
};

// Whether any of some numbers of a row is larger than its bound: the lesser of the row's and its column's.
template <class V>
inline bool any_above(const typename V::S *x, i64 count, double row, const double *columns, double bound, const double *bounds) {
    int any = 0;
#pragma omp simd reduction(| : any)
    for (i64 j = 0; j < count; ++j) any |= V::moved(x[j], row, columns[j]) > (bounds[j] < bound ? bounds[j] : bound) ? 1 : 0;
    return any != 0;
}

template <class V>
void find_above(const ProductTable &t, const ProductTile &tile, const double *moves, const double *bounds, Found &found) {
    const i64 first = t.place + t.rows;
    for (i64 r = tile.row; r < tile.row + tile.rows; ++r) {
        const typename V::S *x = static_cast<const typename V::S *>(t.data) + r * t.stride;
        const double move = moves[t.place + r], bound = bounds[t.place + r];
        for (i64 start = 0; start < t.width; start += COLUMNS_AT_A_LOOK) {
            const i64 count = std::min(COLUMNS_AT_A_LOOK, t.width - start);
            const double *columns = moves + first + start, *column_bounds = bounds + first + start;
            if (!any_above<V>(x + start, count, move, columns, bound, column_bounds)) continue;
            for (i64 j = 0; j < count; ++j)
                if (V::moved(x[start + j], move, columns[j]) > std::min(bound, column_bounds[j]))
                    found.add(t.place + r, first + start + j, V::log_of(x[start + j]));
        }
    }
}

// The largest numbers of a line so far, the largest first, and where they are; -1: nowhere.
inline void insert(double *sizes, i64 *places, i64 most, double size, i64 place) {
    i64 at = most - 1;
    for (; at > 0 && sizes[at - 1] < size; --at) {
        sizes[at] = sizes[at - 1];
        places[at] = places[at - 1];
    }
    sizes[at] = size;
    places[at] = place;
}

template <class V> void find_largest(const ProductTable &t, const double *moves, i64 most, Found &found) {
    const i64 first = t.place + t.rows;
    const typename V::S *data = static_cast<const typename V::S *>(t.data);
    std::vector<double> sizes(t.width * most, V::nothing()), least(t.width, V::nothing()), own(most);
    std::vector<i64> places(t.width * most, -1), own_places(t.rows * most, -1);
    for (i64 r = 0; r < t.rows; ++r) {
        const typename V::S *x = data + r * t.stride;
        const double move = moves[t.place + r];
        i64 *row_places = own_places.data() + r * most;
        std::fill(own.begin(), own.end(), V::nothing());
        for (i64 start = 0; start < t.width; start += COLUMNS_AT_A_LOOK) {
            const i64 count = std::min(COLUMNS_AT_A_LOOK, t.width - start);
            const double *columns = moves + first + start;
            if (!any_above<V>(x + start, count, move, columns, own[most - 1], least.data() + start)) continue;
            for (i64 j = start; j < start + count; ++j) {
                const double size = V::moved(x[j], move, moves[first + j]);
                if (size > own[most - 1]) insert(own.data(), row_places, most, size, j);
                if (size > least[j]) {
                    insert(sizes.data() + j * most, places.data() + j * most, most, size, r);
                    least[j] = sizes[j * most + most - 1];
                }
            }
        }
        for (i64 k = 0; k < most && row_places[k] >= 0; ++k)
            found.add(t.place + r, first + row_places[k], V::log_of(x[row_places[k]]));
    }
    for (i64 j = 0; j < t.width; ++j)
        for (i64 k = 0; k < most && places[j * most + k] >= 0; ++k) {
            const i64 r = places[j * most + k], *of_row = own_places.data() + r * most;
            if (std::find(of_row, of_row + most, j) == of_row + most)
                found.add(t.place + r, first + j, V::log_of(data[r * t.stride + j]));
        }
}

void look_above(const ProductTable &t, const ProductTile &tile, const double *moves, const double *bounds, Found &found) {
    if (t.is_power) return find_above<Logarithms>(t, tile, moves, bounds, found);
    switch (t.dtype) {
    case 0: return find_above<Weights<F32>>(t, tile, moves, bounds, found);
    case 2: return find_above<Weights<BF16>>(t, tile, moves, bounds, found);
    default: return find_above<Weights<F16>>(t, tile, moves, bounds, found);
    }
}

void look_for_largest(const ProductTable &t, const double *moves, i64 most, Found &found) {
    if (t.is_power) return find_largest<Logarithms>(t, moves, most, found);
    switch (t.dtype) {
    case 0: return find_largest<Weights<F32>>(t, moves, most, found);
    case 2: return find_largest<Weights<BF16>>(t, moves, most, found);
    default: return find_largest<Weights<F16>>(t, moves, most, found);
    }
}

// Puts what each part has found, at its own place, one behind the other.
inline i64 close_up(const i64 *starts, const i64 *counts, i64 parts, i64 *rows, i64 *columns, double *logs) {
    i64 count = 0;
    for (i64 part = 0; part < parts; ++part) {
        const i64 from = starts[part], own = counts[part];
        if (from != count) {
            std::copy(rows + from, rows + from + own, rows + count);
            std::copy(columns + from, columns + from + own, columns + count);
            std::copy(logs + from, logs + from + own, logs + count);
        }
        count += own;
    }
    return count;
}

}  // namespace

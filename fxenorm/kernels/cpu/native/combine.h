// From the tiles' partial sums to those of the variables, always in the same order.
#pragma once
#include <cmath>

#include "accurate.h"

namespace {

constexpr i64 MOST_COLUMNS = 32768;   // of a tile, where sums of columns are added up

// How partial sums become whole ones: by p.
enum Join { ADD, TAKE_LARGEST, ADD_LOGS };
inline Join join_of(double p) { return std::isinf(p) ? TAKE_LARGEST : adds_logs(p) ? ADD_LOGS : ADD; }
inline double nothing_of(Join join) { return join == ADD_LOGS ? -HUGE_VAL : 0.0; }

void combine(const double *part, i64 count, double *into, Join join) {
    if (join == TAKE_LARGEST) {
        for (i64 i = 0; i < count; ++i) into[i] = larger(part[i], into[i]);
    } else if (join == ADD) {
        for (i64 i = 0; i < count; ++i) into[i] += part[i];
    } else {
        i64 i = 0;
        for (; i + WIDE_LANES <= count; i += WIDE_LANES)
            stored(into + i, added_logs<WideLanes>(loaded<WideLanes>(part + i), loaded<WideLanes>(into + i)));
        for (; i < count; ++i) into[i] = added_logs<WideLanes>(all_of<WideLanes>(part[i]), all_of<WideLanes>(into[i]))[0];
    }
}

// Columns that carry the same, side by side: their sums are added up, or the largest is taken.
inline void add_runs(const double *column, i64 count, i64 run, double *to, bool largest) {
    for (i64 i = 0; i < count; ++i) to[i] = 0.0;
    for (i64 t = 0; t < run; ++t) {
        if (largest)
#pragma omp simd
            for (i64 i = 0; i < count; ++i) to[i] = larger(column[i * run + t], to[i]);
        else
#pragma omp simd
            for (i64 i = 0; i < count; ++i) to[i] += column[i * run + t];
    }
}

// One tile's sums, by a function that makes those of all columns.
template <class Reduce> bool reduce_runs(const ReduceMatrix &m, const ReduceTile &tile, double p, double *work, Reduce reduce) {
    double *row_part = tile.row_part < 0 ? nullptr : work + tile.row_part;
    double *column_part = tile.column_part < 0 ? nullptr : work + tile.column_part;
    if (m.run == 1 || !column_part) return reduce(m, tile, p, row_part, column_part);
    alignas(64) double column[MOST_COLUMNS];
    if (!reduce(m, tile, p, row_part, column)) return false;
    add_runs(column, tile.columns / m.run, m.run, column_part, std::isinf(p));
    return true;
}

void combine_tiles(const ReduceMatrix &m, const ReduceTile *tiles, double *work, Join join) {
    for (i64 i = 0; m.row_sums >= 0 && i < m.rows; ++i) work[m.row_sums + i] = nothing_of(join);
    for (i64 i = 0; m.column_sums >= 0 && i < m.column_count; ++i) work[m.column_sums + i] = nothing_of(join);
    for (i64 t = m.first_tile; t < m.last_tile; ++t) {
        const ReduceTile &tile = tiles[t];
        if (tile.row_part >= 0) combine(work + tile.row_part, tile.rows, work + m.row_sums + tile.row, join);
        if (tile.column_part >= 0)
            combine(work + tile.column_part, tile.columns / m.run,
                    work + m.column_sums + (tile.segment * m.width + tile.column) / m.run, join);
    }
}

// One more share of a slot's sum.
inline void add_share(double &slot, double share, double weight, Join join) {
    if (join == TAKE_LARGEST) slot = larger(share, slot);
    else if (join == ADD) slot += weight * share;
    else if (slot == -HUGE_VAL) slot = share + weight;
    else slot = added_logs<WideLanes>(all_of<WideLanes>(share + weight), all_of<WideLanes>(slot))[0];
}

void add_links(const Link *links, i64 begin, i64 end, const double *work, double *sums, Join join) {
    for (i64 i = begin; i < end; ++i) {
        const Link &link = links[i];
        const double weight = join == ADD_LOGS ? std::log2(link.weight) : link.weight, *share = work + link.source;
        for (i64 j = 0; j < link.count;) {
            const std::int32_t slot = link.slots[j];
            double sum = sums[slot];
            // The places of a kernel share a slot: their sum stays in a register.
            do add_share(sum, share[j], weight, join);
            while (++j < link.count && link.slots[j] == slot);
            sums[slot] = sum;
        }
    }
}

}  // namespace

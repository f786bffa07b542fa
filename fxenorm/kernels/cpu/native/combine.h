// From the tiles' partial sums to those of the variables, always in the same order.
#pragma once
#include <cstring>

#include "accurate.h"

namespace {

void combine(const double *part, i64 count, double *into, bool largest) {
    if (largest)
        for (i64 i = 0; i < count; ++i) into[i] = larger(part[i], into[i]);
    else
        for (i64 i = 0; i < count; ++i) into[i] += part[i];
}

void combine_tiles(const ReduceMatrix &m, const ReduceTile *tiles, double *work, bool largest) {
    if (m.row_sums >= 0) std::memset(work + m.row_sums, 0, sizeof(double) * m.rows);
    if (m.column_sums >= 0) std::memset(work + m.column_sums, 0, sizeof(double) * m.column_count);
    for (i64 t = m.first_tile; t < m.last_tile; ++t) {
        const ReduceTile &tile = tiles[t];
        if (tile.row_part >= 0) combine(work + tile.row_part, tile.rows, work + m.row_sums + tile.row, largest);
        if (tile.column_part >= 0)
            combine(work + tile.column_part, tile.columns, work + m.column_sums + tile.segment * m.width + tile.column, largest);
    }
}

void add_links(const Link *links, i64 begin, i64 end, const double *work, double *sums, bool largest) {
    for (i64 i = begin; i < end; ++i) {
        const Link &link = links[i];
        const double *source = work + link.source;
        for (i64 j = 0; j < link.count; ++j) {
            double &slot = sums[link.slots[j]];
            slot = largest ? larger(source[j], slot) : slot + link.weight * source[j];
        }
    }
}

}  // namespace

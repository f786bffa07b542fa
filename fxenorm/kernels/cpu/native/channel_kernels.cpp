// Channel sums of |w|^p and scaling in place, for many tensors a call. Compiled once for all plans; tables say what to do.
//
// Every tensor is a table of rows by width entries, as it lies in memory. The work is cut into tiles whatever the number of
// threads, each tile writes its own partial sums, and these are added in the order of the tiles: every run gives the same bits.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "accurate.h"
#include "combine.h"
#include "contraction.h"
#include "cycles.h"
#include "factors.h"
#include "layout.h"
#include "looks.h"
#include "products.h"
#include "scale.h"
#include "step.h"
#include "zeros.h"

extern "C" {

// Max-balanced potentials of a strongly connected graph whose root is node 0. Out: for each node the offset; the
// nodes in a line, and the levels between neighbours there. The answer is 0 where there is none.
int fxenorm_contract(i64 count, i64 arcs, const i64 *tails, const i64 *heads, const double *lengths, double *offsets, i64 *line, double *gaps) {
    try {
        if (std::max(count, arcs) > std::numeric_limits<Contraction::Id>::max()) return 0;
        Contraction work(count, arcs, tails, heads, lengths);
        work.plant();
        if (!work.run()) return 0;
        for (i64 node = 0; node < count; ++node) offsets[node] = 0.0;
        for (i64 at = (i64)work.merged.size() - 1; at >= 0; --at)
            offsets[work.merged[at]] = offsets[work.merged_into[at]] + work.merged_offset[at];
        i64 node = work.first[work.root];
        for (i64 at = 0; at < count; ++at) {
            line[at] = node;
            gaps[at] = work.gaps[node];
            node = work.following[node];
        }
        return 1;
    } catch (...) {  // there is no more memory
        return 0;
    }
}

// Sums of |w|^p by slot (p = inf: the largest |w|; beyond p = 8: base-2 logarithms of sums); `out` is overwritten. The answer is 1 where they cannot be relied on.
int fxenorm_reduce(const ReduceMatrix *matrices, i64 matrix_count, const ReduceTile *tiles, i64 tile_count, const Link *links,
                   i64 link_count, double *work, double *out, i64 out_count, double p, int threads) {
    const Join join = join_of(p);
    int lost = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < tile_count; ++i) {
            if (!reduce_runs(matrices[tiles[i].matrix], tiles[i], p, work, reduce_accurately)) {
#pragma omp atomic write
                lost = 1;
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < matrix_count; ++i) combine_tiles(matrices[i], tiles, work, join);
    }
    for (i64 i = 0; i < out_count; ++i) out[i] = nothing_of(join);
    add_links(links, 0, link_count, work, out, join);
    return lost;
}

// Multiplies everything in place. With `within`, where a product would leave its room, everything is divided again, so that nothing
// stays changed but for a rounding, and the answer is 1. `done` holds one number a tile.
int fxenorm_scale(const ScaleMatrix *matrices, const ScaleTile *tiles, i64 tile_count, const FactorLink *links, i64 link_count,
                  const double *powers, i64 power_stride, double *factors, int within, i64 *done, int threads) {
    int stop = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 4)
        for (i64 i = 0; i < link_count; ++i)
            if (links[i].first) fill_factors(links, i, link_count, powers, power_stride, factors);
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < tile_count; ++i) {
            int stopped;
#pragma omp atomic read
            stopped = stop;
            done[i] = 0;
            if (stopped) continue;
            const ScaleTile &tile = tiles[i];
            done[i] = scale_any(matrices[tile.matrix], tile, factors, within != 0);
            if (done[i] < tile.rows) {
#pragma omp atomic write
                stop = 1;
            }
        }
        if (stop) {
#pragma omp for schedule(dynamic, 1)
            for (i64 i = 0; i < tile_count; ++i) divide_any(matrices[tiles[i].matrix], tiles[i], factors, done[i]);
        }
    }
    return stop;
}

// The least size of a number that is not 0, and the largest; where all are 0, the first says nothing.
void fxenorm_ends(const void *data, i64 count, i64 dtype, double *out, int threads) {
    switch (dtype) {
    case 0: return find_ends<F32, std::uint32_t>(data, count, out, threads);
    case 1: return find_ends<F64, std::uint64_t>(data, count, out, threads);
    case 2: return find_ends<BF16, std::uint16_t>(data, count, out, threads);
    default: return find_ends<F16, std::uint16_t>(data, count, out, threads);
    }
}

// Whether a number is 0.
int fxenorm_zeros(const void *data, i64 count, i64 size, int threads) {
    switch (size) {
    case 2: return find_zeros<std::uint16_t>(data, count, threads);
    case 4: return find_zeros<std::uint32_t>(data, count, threads);
    default: return find_zeros<std::uint64_t>(data, count, threads);
    }
}

// Products of all tables with the vector `inner`: of each row with the columns' numbers, of each column with the rows'.
void fxenorm_products(const ProductTable *tables, i64 table_count, const ProductTile *tiles, i64 tile_count, double p,
                      const double *inner, double *sums, double *work, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < tile_count; ++i) multiply(tables[tiles[i].table], tiles[i], p, inner, sums, work);
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < table_count; ++i) add_parts(tables[i], tiles, work, sums);
    }
}

// The numbers of some tiles that are above a bound after a rescaling. What tile i finds comes to starts[i] and after, where there is
// room for all of it, and is closed up then; the answer is how many there are. `moves` are factors, of logarithms what is added.
i64 fxenorm_above(const ProductTable *tables, const ProductTile *tiles, i64 tile_count, const double *moves, const double *bounds,
                  const i64 *starts, i64 *counts, i64 *rows, i64 *columns, double *logs, int threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (i64 i = 0; i < tile_count; ++i) {
        Found found{rows + starts[i], columns + starts[i], logs + starts[i]};
        look_above(tables[tiles[i].table], tiles[i], moves, bounds, found);
        counts[i] = found.count;
    }
    return close_up(starts, counts, tile_count, rows, columns, logs);
}

// The largest numbers, so many each, of each row and column of some tables after a rescaling, in the same way; -1: there is no memory.
i64 fxenorm_largest(const ProductTable *tables, i64 table_count, const double *moves, i64 most, const i64 *starts, i64 *counts,
                    i64 *rows, i64 *columns, double *logs, int threads) {
    int failed = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (i64 i = 0; i < table_count; ++i) {
        Found found{rows + starts[i], columns + starts[i], logs + starts[i]};
        try {
            look_for_largest(tables[i], moves, most, found);
        } catch (...) {
#pragma omp atomic write
            failed = 1;
        }
        counts[i] = found.count;
    }
    return failed ? -1 : close_up(starts, counts, table_count, rows, columns, logs);
}

// One cycle; see Phase. Where a factor is too large, sums are lost or a product would leave its room, the answer is 1 and nothing
// stays changed, but for the rounding of what had to be divided again. The bits do not depend on the order: with `factors_first`
// nothing is written before all factors are known.
int fxenorm_step(const Step *given) {
    const Step &step = *given;
    Progress progress;
    *step.largest = 1.0;
    for (i64 i = 0; i < step.sum_count; ++i) step.sums[i] = nothing_of(join_of(step.p));
    std::memset(step.done, 0, sizeof(i64) * step.scale_tile_count);
    std::memset(step.claimed, 0, step.scale_tile_count + step.reduce_tile_count);
#pragma omp parallel num_threads(static_cast<int>(step.threads)) if (step.threads > 1)
    {
        for (i64 number = 0; number < step.phase_count; ++number) run_phase(step, number, !step.factors_first, true, progress);
        for (i64 number = 0; step.factors_first && number < step.phase_count; ++number) run_phase(step, number, true, false, progress);
        if (progress.stop) divide_again(step);
    }
    return progress.stop;
}

// Several cycles, with the same answer. All factors are known before anything is written.
int fxenorm_cycles(const Cycles *given) {
    const Cycles &cycles = *given;
    const Step &step = *cycles.step;
    Progress progress;
    progress.begun = progress.settled = step.phase_count;
    std::memset(cycles.claimed, 0, cycles.tile_count);
    std::memset(step.done, 0, sizeof(i64) * step.scale_tile_count);
    std::memset(step.claimed, 0, step.scale_tile_count + step.reduce_tile_count);
    for (i64 i = 0; i < step.variable_count; ++i) cycles.totals[i] = 1.0;
    for (i64 i = 0; i < cycles.power_count * (step.variable_count + 1); ++i) cycles.power_table[i] = 1.0;
#pragma omp parallel num_threads(static_cast<int>(step.threads)) if (step.threads > 1)
    {
        find_totals(cycles, progress);
#pragma omp single
        if (!progress.stop) hand_over(cycles);
        fill_all_factors(step, true, step.has_float64 != 0);
        for (i64 number = 0; number < step.phase_count; ++number) run_phase(step, number, true, false, progress);
        if (progress.stop) divide_again(step);
    }
    return progress.stop;
}

// All structures and their fields, by name, and how many there are of both.
const Field *fxenorm_layout(i64 *count) {
    *count = sizeof(FIELDS) / sizeof(FIELDS[0]);
    return FIELDS;
}

}  // extern "C"

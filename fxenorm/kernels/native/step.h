// One cycle in one call: sums, factors and products, each tensor as soon as its factors are known, while it is still in cache.
// Like all of it, the functions of a phase may be called outside of a parallel region: by one thread.
#pragma once
#include <cmath>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "combine.h"
#include "fast.h"

namespace {

void reduce_one(const Step &step, const ReduceTile &tile) {
    const ReduceMatrix &m = step.matrices[tile.matrix];
    double *row_part = tile.row_part < 0 ? nullptr : step.work + tile.row_part;
    double *column_part = tile.column_part < 0 ? nullptr : step.work + tile.column_part;
    switch (m.dtype) {
    case 0: return reduce_fast_any<F32>(m, tile, step.p, row_part, column_part);
    case 1: return reduce_any<F64>(m, tile, step.p, row_part, column_part);
    case 2: return reduce_fast_any<BF16>(m, tile, step.p, row_part, column_part);
    default: return reduce_any<F16>(m, tile, step.p, row_part, column_part);
    }
}

i64 scale_one(const Step &step, const ScaleTile &tile) {
    const ScaleMatrix &m = step.targets[tile.matrix];
    const double threshold = step.thresholds[tile.matrix];
    switch (m.dtype) {
    case 0: return scale_fast<F32>(step, m, tile, threshold);
    case 1: return scale_fast<F64>(step, m, tile, threshold);
    case 2: return scale_fast<BF16>(step, m, tile, threshold);
    default: return scale_fast<F16>(step, m, tile, threshold);
    }
}

// The tiles of a phase. Each thread takes those that lie where it has worked before, in this step and in the optimizer's: every
// thread has its part of each tensor, in its own caches. Then it takes what others have not come to yet, from the end.
void run_tiles(const Step &step, const Phase &phase, bool write, bool read, i64 thread, i64 threads, int *stop) {
    const i64 scaled = write ? phase.scale_tiles[1] - phase.scale_tiles[0] : 0;
    const i64 all = scaled + (read ? phase.reduce_tiles[1] - phase.reduce_tiles[0] : 0);
    for (int pass = 0; pass < (threads > 1 ? 2 : 1); ++pass) {
        for (i64 i = 0; i < all; ++i) {
            const i64 number = pass ? all - 1 - i : i;
            const i64 at = number < scaled ? phase.scale_tiles[0] + number : phase.reduce_tiles[0] + number - scaled;
            const bool scales = number < scaled;
            if (threads > 1) {
                const i64 share = scales ? step.scale_tiles[at].share : step.reduce_tiles[at].share;
                if (pass == 0 && share * threads / SHARES != thread) continue;
                std::uint8_t &claimed = step.claimed[scales ? at : step.scale_tile_count + at];
                if (__atomic_load_n(&claimed, __ATOMIC_RELAXED) || __atomic_exchange_n(&claimed, 1, __ATOMIC_RELAXED)) continue;
            }
            if (__atomic_load_n(stop, __ATOMIC_RELAXED)) return;
            if (!scales) {
                reduce_one(step, step.reduce_tiles[at]);
                continue;
            }
            step.done[at] = scale_one(step, step.scale_tiles[at]);
            if (step.done[at] < step.scale_tiles[at].rows) __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
        }
    }
}

inline double integer_power(double base, i64 power) {
    double result = 1.0;
    for (i64 i = power < 0 ? -power : power; i > 0; --i) result *= base;
    return power < 0 ? 1.0 / result : result;
}

// All powers of a variable's factor that are needed.
inline void store_powers(const Step &step, i64 k, double factor, double inverse) {
    const i64 stride = step.variable_count + 1;
    for (i64 e = 0; e < step.power_count; ++e) {
        const i64 power = step.powers[e];
        const double value = power < 0 ? integer_power(inverse, -power) : integer_power(factor, power);
        step.power_table[e * stride + k] = value;
        step.narrow_power_table[e * stride + k] = static_cast<float>(value);
    }
}

inline double real_power(double base, double power) {
    const i64 whole = static_cast<i64>(power);
    return static_cast<double>(whole) == power ? integer_power(base, whole) : std::exp(power * std::log(base));
}

// The factor of a variable in one cycle, (N / P)^(1 / (p A)).
inline double cycle_factor(const Step &step, i64 k) {
    const double negative = step.sums[k], positive = step.sums[step.variable_count + k];
    if (step.held[k] || !(negative > 0.0 && positive > 0.0 && negative < HUGE_VAL && positive < HUGE_VAL)) return 1.0;
    double factor = negative / positive;
    if (step.roots[k] < 0) factor = std::exp(step.exponents[k] * std::log(factor));
    for (int root = 0; root < step.roots[k]; ++root) factor = std::sqrt(factor);
    return factor;
}

// The factor of one variable; returns its size, or that of its inverse.
inline double settle(const Step &step, i64 k) {
    double factor = cycle_factor(step, k), inverse = 1.0 / factor;
    if (factor > step.limit || inverse > step.limit) {
        factor = factor > step.limit ? step.limit : 1.0 / step.limit;
        inverse = 1.0 / factor;
    }
    store_powers(step, k, factor, inverse);
    return factor > inverse ? factor : inverse;
}

// The factors of one row or column table; further terms of it follow its first.
template <class Number> void fill_factors(const Step &step, const Number *table, Number *factors, i64 link, i64 end) {
    const i64 stride = step.variable_count + 1;
    for (i64 k = link; k < end && (k == link || !step.factor_links[k].first); ++k) {
        const FactorLink &one = step.factor_links[k];
        const Number *power = table + one.exponent * stride;
        Number *to = factors + one.destination;
        if (k == link)
            for (i64 j = 0; j < one.count; ++j) to[j] = power[one.ids[j]];
        else
            for (i64 j = 0; j < one.count; ++j) to[j] *= power[one.ids[j]];
    }
}

// Called by all threads together: all factors of some links.
void fill_all_factors(const Step &step, i64 begin, i64 end, bool narrow, bool wide) {
#pragma omp for schedule(dynamic, 1)
    for (i64 i = begin; i < end; ++i) {
        if (!step.factor_links[i].first) continue;
        if (narrow) fill_factors(step, step.narrow_power_table, step.narrow_factors, i, end);
        if (wide) fill_factors(step, step.power_table, step.factors, i, end);
    }
}

// Called by all threads together.
void run_phase(const Step &step, const Phase &phase, bool write, bool read, int *stop) {
#ifdef _OPENMP
    const i64 thread = omp_get_thread_num(), threads = omp_get_num_threads();
#else
    const i64 thread = 0, threads = 1;
#endif
    const bool largest = std::isinf(step.p);
    run_tiles(step, phase, write, read, thread, threads, stop);
#pragma omp barrier
    if (!read) return;
#pragma omp for schedule(dynamic, 1)
    for (i64 i = phase.matrices[0]; i < phase.matrices[1]; ++i)
        combine_tiles(step.matrices[i], step.reduce_tiles, step.work, largest);
#pragma omp single
    add_links(step.links, phase.links[0], phase.links[1], step.work, step.sums, largest);
    double size = 1.0;
#pragma omp for schedule(static)
    for (i64 i = phase.variables[0]; i < phase.variables[1]; ++i) {
        const double found = settle(step, step.variables[i]);
        size = found > size ? found : size;
    }
    if (size > 1.0) {
#pragma omp critical
        if (size > *step.largest) *step.largest = size;
    }
    if (!(size <= step.bound)) __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    fill_all_factors(step, phase.factor_links[0], phase.factor_links[1], true, step.wide != 0);
}

// Called by all threads together: undoes what has been scaled, but for a rounding.
void divide_again(const Step &step) {
    fill_all_factors(step, 0, step.phases[step.phase_count - 1].factor_links[1], false, true);
#pragma omp for schedule(dynamic, 1)
    for (i64 i = 0; i < step.scale_tile_count; ++i)
        scale_any(step.targets[step.scale_tiles[i].matrix], step.scale_tiles[i], step.factors, HUGE_VAL, true, step.done[i]);
}

}  // namespace

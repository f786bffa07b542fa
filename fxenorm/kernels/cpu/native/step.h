// One cycle in one call: sums, factors and products, each tensor as soon as its factors are known, while it is still in cache.
// Like all of it, the functions of a phase may be called outside of a parallel region: by one thread.
#pragma once
#include <cmath>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "combine.h"
#include "factors.h"
#include "fast.h"
#include "scale.h"

namespace {

// Whether the sums can be relied on.
bool reduce_one(const Step &step, const ReduceTile &tile) {
    const ReduceMatrix &m = step.matrices[tile.matrix];
    double *row_part = tile.row_part < 0 ? nullptr : step.work + tile.row_part;
    double *column_part = tile.column_part < 0 ? nullptr : step.work + tile.column_part;
    return (m.dtype == 1 ? reduce_accurately : reduce_fast_any)(m, tile, step.p, row_part, column_part);
}

i64 scale_one(const Step &step, const ScaleTile &tile) {
    const ScaleMatrix &m = step.targets[tile.matrix];
    switch (m.dtype) {
    case 0: return scale_tile<F32>(m, tile, step.narrow_factors, true);
    case 1: return scale_tile<F64>(m, tile, step.factors, true);
    case 2: return scale_tile<BF16>(m, tile, step.narrow_factors, true);
    default: return scale_tile<F16>(m, tile, step.narrow_factors, true);
    }
}

// Shares some tiles out: each thread takes those that lie where it has worked before, in this step and in the optimizer's, so that
// it has its part of each tensor in its own caches; then what others have not come to yet, from the end. Stops where `stop` is set.
// `share` and `claimed` say what belongs to a tile of that number, `work` does it.
template <class Share, class Claimed, class Work>
inline void share_out(i64 count, i64 thread, i64 threads, const int *stop, Share share, Claimed claimed, Work work) {
    for (int pass = 0; pass < (threads > 1 ? 2 : 1); ++pass) {
        for (i64 i = 0; i < count; ++i) {
            const i64 number = pass ? count - 1 - i : i;
            if (threads > 1) {
                if (pass == 0 && share(number) * threads / SHARES != thread) continue;
                std::uint8_t &taken = claimed(number);
                if (__atomic_load_n(&taken, __ATOMIC_RELAXED) || __atomic_exchange_n(&taken, 1, __ATOMIC_RELAXED)) continue;
            }
            if (__atomic_load_n(stop, __ATOMIC_RELAXED)) return;
            work(number);
        }
    }
}

// The tiles of a phase: those to be written first, then those to be read.
void run_tiles(const Step &step, const Phase &phase, bool write, bool read, i64 thread, i64 threads, int *stop) {
    const i64 scaled = write ? phase.scale_tiles[1] - phase.scale_tiles[0] : 0;
    const i64 all = scaled + (read ? phase.reduce_tiles[1] - phase.reduce_tiles[0] : 0);
    const i64 first_scaled = phase.scale_tiles[0], first_read = phase.reduce_tiles[0] - scaled;
    share_out(
        all, thread, threads, stop,
        [&](i64 i) { return i < scaled ? step.scale_tiles[first_scaled + i].share : step.reduce_tiles[first_read + i].share; },
        [&](i64 i) -> std::uint8_t & { return step.claimed[i < scaled ? first_scaled + i : step.scale_tile_count + first_read + i]; },
        [&](i64 i) {
            if (i >= scaled) {
                if (!reduce_one(step, step.reduce_tiles[first_read + i])) __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
                return;
            }
            const ScaleTile &tile = step.scale_tiles[first_scaled + i];
            const i64 done = step.done[first_scaled + i] = scale_one(step, tile);
            if (done < tile.rows) __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
        });
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
    if (adds_logs(step.p)) {
        const double gap = negative - positive;
        return step.held[k] || !std::isfinite(gap) ? 1.0 : std::exp2(step.exponents[k] * gap);
    }
    if (step.held[k] || !(negative > 0.0 && positive > 0.0 && negative < HUGE_VAL && positive < HUGE_VAL)) return 1.0;
    double factor = negative / positive;
    if (step.roots[k] < 0) factor = std::exp(step.exponents[k] * std::log(factor));
    for (int root = 0; root < step.roots[k]; ++root) factor = std::sqrt(factor);
    return factor;
}

// The largest power of two that is no larger than a size of at least 1; a rounding error below one counts as that one.
inline double whole_octaves(double size) {
    int exponent;
    std::frexp(size * (1.0 + 1e-12), &exponent);
    return std::ldexp(1.0, exponent - 1);
}

// The factor of one variable; returns its size, or that of its inverse.
inline double settle(const Step &step, i64 k) {
    double factor = cycle_factor(step, k), inverse = 1.0 / factor;
    if (factor > step.limit || inverse > step.limit) {
        factor = factor > step.limit ? step.limit : 1.0 / step.limit;
        inverse = 1.0 / factor;
    }
    if (step.octaves[k]) {
        if (factor >= 1.0) {
            factor = whole_octaves(factor);
            inverse = 1.0 / factor;
        } else {
            inverse = whole_octaves(inverse);
            factor = 1.0 / inverse;
        }
    }
    if (factor < step.band && inverse < step.band) factor = inverse = 1.0;
    store_powers(step, k, factor, inverse);
    return factor > inverse ? factor : inverse;
}

// Called by all threads together: all factors of some links.
void fill_all_factors(const Step &step, i64 begin, i64 end, bool narrow, bool wide) {
#pragma omp for schedule(dynamic, 1)
    for (i64 i = begin; i < end; ++i) {
        if (!step.factor_links[i].first) continue;
        const i64 stride = step.variable_count + 1;
        if (narrow) fill_factors(step.factor_links, i, end, step.narrow_power_table, stride, step.narrow_factors);
        if (wide) fill_factors(step.factor_links, i, end, step.power_table, stride, step.factors);
    }
}

// Called by all threads together.
void run_phase(const Step &step, const Phase &phase, bool write, bool read, int *stop) {
#ifdef _OPENMP
    const i64 thread = omp_get_thread_num(), threads = omp_get_num_threads();
#else
    const i64 thread = 0, threads = 1;
#endif
    const Join join = join_of(step.p);
    run_tiles(step, phase, write, read, thread, threads, stop);
#pragma omp barrier
    if (!read) return;
#pragma omp for schedule(dynamic, 1)
    for (i64 i = phase.matrices[0]; i < phase.matrices[1]; ++i)
        combine_tiles(step.matrices[i], step.reduce_tiles, step.work, join);
#pragma omp single
    add_links(step.links, phase.links[0], phase.links[1], step.work, step.sums, join);
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
    fill_all_factors(step, phase.factor_links[0], phase.factor_links[1], true, step.has_float64 != 0);
}

// Called by all threads together: undoes what has been scaled, but for a rounding.
void divide_again(const Step &step) {
    fill_all_factors(step, 0, step.phases[step.phase_count - 1].factor_links[1], false, true);
#pragma omp for schedule(dynamic, 1)
    for (i64 i = 0; i < step.scale_tile_count; ++i)
        divide_any(step.targets[step.scale_tiles[i].matrix], step.scale_tiles[i], step.factors, step.done[i]);
}

}  // namespace

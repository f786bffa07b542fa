// One cycle in one call: sums, factors and products, each tensor as soon as its factors are known, while it is still in cache.
// Like all of it, the functions of a phase may be called outside of a parallel region: by one thread.
#pragma once
#include <sched.h>

#include <cmath>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "combine.h"
#include "factors.h"
#include "fast.h"
#include "scale.h"
#include "settle.h"

namespace {

// Whether the sums can be relied on.
bool reduce_one(const Step &step, const ReduceTile &tile) {
    const ReduceMatrix &m = step.matrices[tile.matrix];
    return reduce_runs(m, tile, step.p, step.work, m.dtype == 1 ? reduce_accurately : reduce_fast_any);
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

// What the threads of a step tell one another.
struct Progress {
    int stop = 0;                    // whether the step gives up
    i64 begun = 0, settled = 0;      // phases of which a thread works out the factors, or has done so
};

inline bool stopped(const Progress &progress) { return __atomic_load_n(&progress.stop, __ATOMIC_RELAXED); }
inline void give_up(Progress &progress) { __atomic_store_n(&progress.stop, 1, __ATOMIC_RELAXED); }

struct Team {
    i64 thread, threads;
};

inline Team team() {
#ifdef _OPENMP
    return {omp_get_thread_num(), omp_get_num_threads()};
#else
    return {0, 1};
#endif
}

// The tiles that a thread gets when some are shared out: at first those that lie where it has worked before, in this step and in the
// optimizer's, so that it has its part of each tensor in its own caches; then what others have not come to yet, from the end.
// `share` and `claimed` say what belongs to a tile of that number.
template <class Share, class Claimed> struct Turns {
    i64 count;
    Team us;
    Share share;
    Claimed claimed;
    i64 passed[2] = {0, 0};

    // The next tile of a pass, 0 or 1; -1: there is none.
    i64 next(int pass) {
        if (us.threads == 1) return pass == 0 && passed[0] < count ? passed[0]++ : -1;
        while (passed[pass] < count) {
            const i64 number = pass ? count - 1 - passed[1]++ : passed[0]++;
            if (pass == 0 && share(number) * us.threads / SHARES != us.thread) continue;
            std::uint8_t &taken = claimed(number);
            if (!__atomic_load_n(&taken, __ATOMIC_RELAXED) && !__atomic_exchange_n(&taken, 1, __ATOMIC_RELAXED)) return number;
        }
        return -1;
    }
};

template <class Share, class Claimed> Turns<Share, Claimed> turns(i64 count, Team us, Share share, Claimed claimed) {
    return {count, us, share, claimed};
}

// Works through the tiles of a pass, up to where the step gives up.
template <class Tiles, class Work> inline void take(Tiles &tiles, int pass, const Progress &progress, Work work) {
    for (i64 number; !stopped(progress) && (number = tiles.next(pass)) >= 0;) work(number);
}

// The factors of one link, and of those that follow it.
inline void fill_link(const Step &step, i64 link, i64 end, bool narrow, bool wide) {
    if (!step.factor_links[link].first) return;
    const i64 stride = step.variable_count + 1;
    if (narrow) fill_factors(step.factor_links, link, end, step.narrow_power_table, stride, step.narrow_factors);
    if (wide) fill_factors(step.factor_links, link, end, step.power_table, stride, step.factors);
}

// Called by all threads together: the factors of all links.
void fill_all_factors(const Step &step, bool narrow, bool wide) {
    const i64 end = step.phases[step.phase_count - 1].factor_links[1];
#pragma omp for schedule(dynamic, 1)
    for (i64 i = 0; i < end; ++i) fill_link(step, i, end, narrow, wide);
}

// Called by one thread, once all tiles of a phase have been read: from their sums to the factors.
void settle_phase(const Step &step, const Phase &phase, Progress &progress) {
    const Join join = join_of(step.p);
    for (i64 i = phase.matrices[0]; i < phase.matrices[1]; ++i) combine_tiles(step.matrices[i], step.reduce_tiles, step.work, join);
    add_links(step.links, phase.links[0], phase.links[1], step.work, step.sums, join);
    const double size = settle(step, phase.variables[0], phase.variables[1]);
    if (size > *step.largest) *step.largest = size;
    if (!(size <= step.bound)) give_up(progress);
    for (i64 i = phase.factor_links[0]; i < phase.factor_links[1]; ++i)
        fill_link(step, i, phase.factor_links[1], true, step.has_float64 != 0);
}

// Called by all threads together. While one of them settles the phase before, the others read what comes next; then all scale what
// has been settled, and read the rest.
void run_phase(const Step &step, i64 number, bool write, bool read, Progress &progress) {
    const Phase &phase = step.phases[number];
    const Team us = team();
    const i64 first_scaled = phase.scale_tiles[0], first_read = phase.reduce_tiles[0];
    auto scaled = turns(
        write ? phase.scale_tiles[1] - first_scaled : 0, us, [&](i64 i) { return step.scale_tiles[first_scaled + i].share; },
        [&](i64 i) -> std::uint8_t & { return step.claimed[first_scaled + i]; });
    auto reads = turns(
        read ? phase.reduce_tiles[1] - first_read : 0, us, [&](i64 i) { return step.reduce_tiles[first_read + i].share; },
        [&](i64 i) -> std::uint8_t & { return step.claimed[step.scale_tile_count + first_read + i]; });
    const auto scale = [&](i64 i) {
        const ScaleTile &tile = step.scale_tiles[first_scaled + i];
        const i64 done = step.done[first_scaled + i] = scale_one(step, tile);
        if (done < tile.rows) give_up(progress);
    };
    const auto reduce = [&](i64 i) {
        if (!reduce_one(step, step.reduce_tiles[first_read + i])) give_up(progress);
    };
    i64 before = number - 1;
    if (number && __atomic_compare_exchange_n(&progress.begun, &before, number, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        if (!stopped(progress)) settle_phase(step, step.phases[number - 1], progress);
        __atomic_store_n(&progress.settled, number, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&progress.settled, __ATOMIC_ACQUIRE) < number && !stopped(progress)) {
        const i64 next = reads.next(0);
        if (next >= 0) reduce(next);
        else sched_yield();
    }
    take(scaled, 0, progress, scale);
    take(reads, 0, progress, reduce);
    take(reads, 1, progress, reduce);
    take(scaled, 1, progress, scale);
#pragma omp barrier
}

// Called by all threads together: undoes what has been scaled, but for a rounding.
void divide_again(const Step &step) {
    fill_all_factors(step, false, true);
#pragma omp for schedule(dynamic, 1)
    for (i64 i = 0; i < step.scale_tile_count; ++i)
        divide_any(step.targets[step.scale_tiles[i].matrix], step.scale_tiles[i], step.factors, step.done[i]);
}

}  // namespace

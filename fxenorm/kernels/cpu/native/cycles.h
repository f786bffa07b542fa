// Several cycles on sums over kernels; the weights are read once and written once, however many cycles there are.
#pragma once
#include "step.h"

namespace {

// Smaller sums of powers may have lost something: unless all is zero there, the cycles are left to others.
constexpr float SMALLEST_KEPT = 1e-37f;

// Whether sums that are no larger than that are those of zeros.
template <class S> bool kept(const Condensed &c, const S *x, const float *sums, i64 width) {
    for (i64 i = 0; i < width; ++i) {
        if (sums[i] > SMALLEST_KEPT) continue;
        for (i64 t = 0; t < c.run; ++t)
            if (!(x[c.inner ? c.run * i + t : t * width + i] == S(0))) return false;
    }
    return true;
}

// Sums of |x|^p over runs of entries that lie side by side.
template <class T, Power P> void sum_runs(const typename T::Storage *x, i64 run, i64 count, float *to) {
    constexpr i64 CHUNK = 2304;
    if (run * 2 > CHUNK) {
        for (i64 i = 0; i < count; ++i) {
            double total = 0.0;
            for (i64 start = 0; start < run; start += CHUNK) {
                const i64 stop = start + CHUNK < run ? start + CHUNK : run;
                float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
                for (i64 t = start; t < stop; ++t) sum += power_of<P, float>(static_cast<float>(T::load(x[run * i + t])), 0.0);
                total += sum;
            }
            to[i] = static_cast<float>(total);
        }
        return;
    }
    alignas(64) float powers[CHUNK + 64], threes[CHUNK + 64];
    const i64 runs = CHUNK / run;
    for (i64 first = 0; first < count; first += runs) {
        const i64 some = first + runs < count ? runs : count - first;
        const typename T::Storage *from = x + first * run;
#pragma omp simd
        for (i64 j = 0; j < some * run; ++j) powers[j] = power_of<P, float>(static_cast<float>(T::load(from[j])), 0.0);
        if (run == 9) {
            // Kernels of 3 x 3: most of the additions are done for all places at once.
#pragma omp simd
            for (i64 j = 0; j < some * 9 - 2; ++j) threes[j] = (powers[j] + powers[j + 1]) + powers[j + 2];
            for (i64 i = 0; i < some; ++i) to[first + i] = (threes[9 * i] + threes[9 * i + 3]) + threes[9 * i + 6];
        } else {
            for (i64 i = 0; i < some; ++i) {
                float sum = 0.0f;
                for (i64 t = 0; t < run; ++t) sum += powers[run * i + t];
                to[first + i] = sum;
            }
        }
    }
}

template <class T, Power P>
bool condense_rows(const Condensed &c, const ReduceTile &tile, i64 width) {
    for (i64 r = tile.row; r < tile.row + tile.rows; ++r) {
        const typename T::Storage *x = static_cast<const typename T::Storage *>(c.source) + r * c.width;
        float *to = c.data + r * width;
        if (c.inner) {
            sum_runs<T, P>(x, c.run, width, to);
        } else {
            for (i64 i = 0; i < width; ++i) to[i] = 0.0f;
            for (i64 t = 0; t < c.run; ++t)
                for (i64 i = 0; i < width; ++i) to[i] += power_of<P, float>(static_cast<float>(T::load(x[t * width + i])), 0.0);
        }
        if (!kept(c, x, to, width)) return false;
        if (!c.row_factor) continue;
        const float factor = power_of<P, float>(static_cast<float>(c.row_factor[r]), 0.0);
        for (i64 i = 0; i < width; ++i) to[i] *= factor;
    }
    return true;
}

template <class T> bool condense_any(const Condensed &c, const ReduceTile &tile, i64 width, double p) {
    if (p == 2.0) return condense_rows<T, TWO>(c, tile, width);
    if (p == 1.0) return condense_rows<T, ONE>(c, tile, width);
    if (p == 3.0) return condense_rows<T, THREE>(c, tile, width);
    return condense_rows<T, FOUR>(c, tile, width);
}

// One tile's sums of |w a_row b_column|^p.
template <class T, Power P>
void add_weighted(const ReduceMatrix &m, const ReduceTile &tile, const float *row_scale, const double *row_factor,
                  const float *column_scale, double *row_part, double *column_part) {
    using S = typename T::Storage;
    const S *base = static_cast<const S *>(m.data) + tile.row * m.width + tile.column;
    alignas(64) float column[COLUMNS_AT_A_TIME];
    for (i64 start = 0; start < tile.columns; start += COLUMNS_AT_A_TIME) {
        const i64 count = start + COLUMNS_AT_A_TIME < tile.columns ? COLUMNS_AT_A_TIME : tile.columns - start;
        for (i64 first = 0; first < tile.rows; first += ROWS_AT_A_TIME) {
            const i64 last = first + ROWS_AT_A_TIME < tile.rows ? first + ROWS_AT_A_TIME : tile.rows;
            std::memset(column, 0, sizeof(float) * count);
            for (i64 r = first; r < last; ++r) {
                const S *x = base + r * m.width + start;
                float f = row_scale ? row_scale[r] : 1.0f;
                if (row_factor) f *= static_cast<float>(row_factor[r]);
                FloatLanes sum{};
                i64 j = 0;
                for (; j + LANES <= count; j += LANES) {
                    __builtin_prefetch(x + j + NEXT, 0, 3);
                    FloatLanes value = narrow<T>(x + j) * f;
                    if (column_scale) value = value * loaded<FloatLanes>(column_scale + start + j);
                    value = power_of<P, FloatLanes>(value, 0.0);
                    sum = sum + value;
                    stored(column + j, loaded<FloatLanes>(column + j) + value);
                }
                float rest = 0.0f;
                for (; j < count; ++j) {
                    const float value =
                        power_of<P, float>(static_cast<float>(T::load(x[j])) * f * (column_scale ? column_scale[start + j] : 1.0f), 0.0);
                    rest += value;
                    column[j] += value;
                }
                if (row_part) row_part[r] = (start ? row_part[r] : 0.0) + total_of<P>(sum, rest);
            }
            if (column_part)
                for (i64 j = 0; j < count; ++j) column_part[start + j] = (first ? column_part[start + j] : 0.0) + column[j];
        }
    }
}

// Whether sums that are too small or too large to be relied on are those of nothing but zeros.
template <class S> bool reliable(const S *base, i64 width, const ReduceTile &tile, const double *row_part, const double *column_part) {
    for (i64 r = 0; row_part && r < tile.rows; ++r) {
        if (trusted(row_part + r, 1)) continue;
        for (i64 j = 0; j < tile.columns; ++j)
            if (!(base[r * width + j] == S(0))) return false;
    }
    for (i64 j = 0; column_part && j < tile.columns; ++j) {
        if (trusted(column_part + j, 1)) continue;
        for (i64 r = 0; r < tile.rows; ++r)
            if (!(base[r * width + j] == S(0))) return false;
    }
    return true;
}

template <class T> bool weighted_any(const Cycles &cycles, const ReduceTile &tile) {
    const ReduceMatrix &m = cycles.matrices[tile.matrix];
    const Condensed &c = cycles.condensed[tile.matrix];
    double *row_part = tile.row_part < 0 ? nullptr : cycles.work + tile.row_part;
    double *column_part = tile.column_part < 0 ? nullptr : cycles.work + tile.column_part;
    const float *row_scale = c.row_place < 0 ? nullptr : cycles.factors + c.row_place + tile.row;
    const float *column_scale = c.column_place < 0 ? nullptr : cycles.factors + c.column_place + tile.segment * m.width + tile.column;
    const double *row_factor = c.row_factor && !c.data ? c.row_factor + tile.row : nullptr;
    const double p = c.data ? 1.0 : cycles.step->p;
    if (p == 2.0) add_weighted<T, TWO>(m, tile, row_scale, row_factor, column_scale, row_part, column_part);
    else if (p == 1.0) add_weighted<T, ONE>(m, tile, row_scale, row_factor, column_scale, row_part, column_part);
    else if (p == 3.0) add_weighted<T, THREE>(m, tile, row_scale, row_factor, column_scale, row_part, column_part);
    else add_weighted<T, FOUR>(m, tile, row_scale, row_factor, column_scale, row_part, column_part);
    const typename T::Storage *base = static_cast<const typename T::Storage *>(m.data) + tile.row * m.width + tile.column;
    return reliable(base, m.width, tile, row_part, column_part);
}

bool use_tile(const Cycles &cycles, const ReduceTile &tile, bool condense) {
    const Condensed &c = cycles.condensed[tile.matrix];
    if (!condense) return cycles.matrices[tile.matrix].dtype == 0 ? weighted_any<F32>(cycles, tile) : weighted_any<BF16>(cycles, tile);
    if (!c.data) return true;
    const i64 width = c.width / c.run;
    return c.dtype == 0 ? condense_any<F32>(c, tile, width, cycles.step->p) : condense_any<BF16>(c, tile, width, cycles.step->p);
}

// Of the tiles `first` to `last` of a list, or of all tiles where that is null.
void use_tiles(const Cycles &cycles, const i64 *list, i64 first, i64 last, bool condense, Progress &progress) {
    const auto tile = [&](i64 i) { return list ? list[first + i] : first + i; };
    auto tiles = turns(
        last - first, team(), [&](i64 i) { return cycles.tiles[tile(i)].share; },
        [&](i64 i) -> std::uint8_t & { return cycles.claimed[tile(i)]; });
    for (int pass = 0; pass < 2; ++pass)
        take(tiles, pass, progress, [&](i64 i) {
            if (!use_tile(cycles, cycles.tiles[tile(i)], condense)) give_up(progress);
        });
}

// One cycle's change of a variable's factor; returns its size, or that of its inverse.
inline double settle_total(const Cycles &cycles, i64 k) {
    const Step &step = *cycles.step;
    const i64 stride = step.variable_count + 1;
    double factor;
    cycle_factors(step, &k, 1, &factor);
    double total = cycles.totals[k] * factor, inverse = 1.0 / total;
    if (total > step.limit || inverse > step.limit) {
        total = total > step.limit ? step.limit : 1.0 / step.limit;
        inverse = 1.0 / total;
    }
    cycles.totals[k] = total;
    for (i64 e = 0; e < cycles.power_count; ++e) {
        const double power = cycles.powers[e];
        cycles.power_table[e * stride + k] = power < 0 ? real_power(inverse, -power) : real_power(total, power);
    }
    return total > inverse ? total : inverse;
}

inline i64 begin_of(const i64 *ends, i64 number) { return number ? ends[number - 1] : 0; }

// By what the entries of a matrix are multiplied now.
void fill_matrix(const Cycles &cycles, i64 matrix) {
    const i64 end = cycles.factor_link_ends[matrix];
    for (i64 i = begin_of(cycles.factor_link_ends, matrix); i < end; ++i)
        if (cycles.factor_links[i].first)
            fill_factors(cycles.factor_links, i, end, cycles.power_table, cycles.step->variable_count + 1, cycles.factors);
}

// Sums the matrices of a stage by variable; those of variables of other stages are of no use.
void add_stage(const Cycles &cycles, const Stage &stage) {
    const Step &step = *cycles.step;
    for (i64 i = stage.tiles[0]; i < stage.tiles[1]; ++i) cycles.claimed[cycles.stage_tiles[i]] = 0;
    for (int adds = 0; adds < 2; ++adds) {
        for (i64 i = stage.matrices[0]; i < stage.matrices[1]; ++i) {
            const i64 matrix = cycles.stage_matrices[i], begin = begin_of(cycles.link_ends, matrix), end = cycles.link_ends[matrix];
            if (adds) {
                add_links(cycles.links, begin, end, cycles.work, step.sums, ADD);
                continue;
            }
            for (i64 k = begin; k < end; ++k)
                for (i64 j = 0; j < cycles.links[k].count; ++j) step.sums[cycles.links[k].slots[j]] = 0.0;
        }
    }
}

// Called by all threads together: everything but the scaling.
void find_totals(const Cycles &cycles, Progress &progress) {
    const Step &step = *cycles.step;
    use_tiles(cycles, nullptr, 0, cycles.tile_count, true, progress);
#pragma omp barrier
#pragma omp single
    {
        std::memset(cycles.claimed, 0, cycles.tile_count);
        std::memset(step.sums, 0, sizeof(double) * step.sum_count);
    }
#pragma omp for schedule(dynamic, 1)
    for (i64 i = 0; i < cycles.matrix_count; ++i) fill_matrix(cycles, i);
    for (i64 number = 0; number < cycles.count * cycles.stage_count; ++number) {
        const Stage &stage = cycles.stages[number % cycles.stage_count];
        use_tiles(cycles, cycles.stage_tiles, stage.tiles[0], stage.tiles[1], false, progress);
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
        for (i64 i = stage.matrices[0]; i < stage.matrices[1]; ++i)
            combine_tiles(cycles.matrices[cycles.stage_matrices[i]], cycles.tiles, cycles.work, ADD);
#pragma omp single
        add_stage(cycles, stage);
        double size = 1.0;
#pragma omp for schedule(static)
        for (i64 i = stage.variables[0]; i < stage.variables[1]; ++i) {
            const double found = settle_total(cycles, cycles.stage_variables[i]);
            size = found > size ? found : size;
        }
        if (!(size <= step.bound)) give_up(progress);
#pragma omp for schedule(dynamic, 1)
        for (i64 i = stage.matrices[0]; i < stage.matrices[1]; ++i) fill_matrix(cycles, cycles.stage_matrices[i]);
    }
}

// The totals as the factors of a step.
void hand_over(const Cycles &cycles) {
    const Step &step = *cycles.step;
    for (i64 k = 0; k < step.variable_count; ++k) {
        const double inverse = 1.0 / cycles.totals[k];
        store_powers(step, &k, 1, cycles.totals + k, &inverse);
    }
}

}  // namespace

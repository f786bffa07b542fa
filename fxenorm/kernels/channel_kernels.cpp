// Channel sums of |w|^p and scaling in place, for many tensors a call. Compiled once for all plans; tables say what to do.
//
// Every tensor is a table of rows by width entries, as it lies in memory. The work is cut into tiles whatever the number of
// threads, each tile writes its own partial sums, and these are added in the order of the tiles: every run gives the same bits.
#include <cmath>
#include <cstdint>
#include <cstring>

using i64 = std::int64_t;

struct ReduceMatrix {
    const void *data;
    i64 rows, width, dtype;
    const double *row_factor;        // (rows,) or null: 1
    i64 row_sums, column_sums;       // places in `work`; -1: not wanted
    i64 column_count;                // segments * width
    i64 first_tile, last_tile;
};
struct ReduceTile {
    i64 matrix, row, rows, column, columns, segment, row_part, column_part;
};
struct Link {                        // where sums go: out[slots[i]] += weight * work[source + i]
    i64 source, count;
    const std::int32_t *slots;
    double weight;
};
struct ScaleMatrix {
    void *data;
    i64 width, dtype, row_factor, column_factor;   // places in `factors`; -1: 1
};
struct ScaleTile {
    i64 matrix, row, rows, column, columns, segment;
};
struct FactorLink {                  // factors[destination + i] (*)= powers[exponent][ids[i]]
    i64 destination, count;
    const std::int32_t *ids;
    i64 exponent, first;
};

namespace {

struct F32 {
    using Storage = float;
    static double load(float x) { return x; }
    static float store(double x) { return static_cast<float>(x); }
};
struct F64 {
    using Storage = double;
    static double load(double x) { return x; }
    static double store(double x) { return x; }
};
inline float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline std::uint32_t to_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
// 16-bit types are rounded by way of float32, as PyTorch's casts from float64 are.
struct BF16 {
    using Storage = std::uint16_t;
    static double load(std::uint16_t x) { return from_bits(static_cast<std::uint32_t>(x) << 16); }
    static std::uint16_t store(double x) {
        const float narrow = static_cast<float>(x);
        const std::uint32_t bits = to_bits(narrow);
        const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return static_cast<std::uint16_t>(narrow == narrow ? rounded : 0x7fc0u);
    }
};
struct F16 {
    using Storage = std::uint16_t;
    static double load(std::uint16_t x) {
        const std::uint32_t size = x & 0x7fffu;
        // Exponents are moved by 112 through an exact product; infinities and NaNs keep all exponent bits.
        const float finite = from_bits(size << 13) * from_bits(0x77800000u);
        const std::uint32_t bits = size >= 0x7c00u ? (0x7f800000u | ((size & 0x3ffu) << 13)) : to_bits(finite);
        return from_bits(bits | (static_cast<std::uint32_t>(x & 0x8000u) << 16));
    }
    static std::uint16_t store(double x) {
        const float narrow = static_cast<float>(x);
        const std::uint32_t bits = to_bits(narrow), sign = bits & 0x80000000u, size = bits ^ sign;
        const std::uint32_t normal = (size + ((size >> 13) & 1u) + 0xc8000fffu) >> 13;
        const float shifted = from_bits(size) + 0.5f;      // the unit in the last place of 0.5 is that of a denormal half
        const std::uint32_t denormal = to_bits(shifted) - 0x3f000000u;
        const std::uint32_t special = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
        const std::uint32_t half = size >= 0x47800000u ? special : (size < 0x38800000u ? denormal : normal);
        return static_cast<std::uint16_t>(half | (sign >> 16));
    }
};

enum Power { ONE, TWO, FOUR, ANY, LARGEST };

template <Power P> inline double powered(double x, double p) {
    if (P == TWO) return x * x;
    if (P == FOUR) return (x * x) * (x * x);
    if (P == ANY) return std::pow(std::fabs(x), p);
    return std::fabs(x);
}
inline double larger(double a, double b) { return (a > b || a != a) ? a : b; }   // keeps NaN in b

// Asks for entries that a loop will come to: one stream of addresses alone does not keep the memory busy.
constexpr i64 AHEAD = 4096, READ_STEP = 64, WRITE_STEP = 64;
template <bool WRITE, class S> inline void ask(const S *x) {
#if defined(__GNUC__) || defined(__clang__)
    for (i64 j = 0; j < (WRITE ? WRITE_STEP : READ_STEP); j += 64 / static_cast<i64>(sizeof(S))) __builtin_prefetch(x + j, WRITE ? 1 : 0, 3);
#else
    (void)x;
#endif
}

template <class T, Power P>
inline void four_rows(const typename T::Storage *a, const typename T::Storage *b, const typename T::Storage *c,
                      const typename T::Storage *d, double fa, double fb, double fc, double fd, double p, i64 count,
                      double *column, double &sum_a, double &sum_b, double &sum_c, double &sum_d) {
    double sa = sum_a, sb = sum_b, sc = sum_c, sd = sum_d;
#pragma omp simd reduction(+ : sa, sb, sc, sd)
    for (i64 j = 0; j < count; ++j) {
        const double xa = powered<P>(T::load(a[j]) * fa, p), xb = powered<P>(T::load(b[j]) * fb, p);
        const double xc = powered<P>(T::load(c[j]) * fc, p), xd = powered<P>(T::load(d[j]) * fd, p);
        sa += xa;
        sb += xb;
        sc += xc;
        sd += xd;
        column[j] += (xa + xb) + (xc + xd);
    }
    sum_a = sa;
    sum_b = sb;
    sum_c = sc;
    sum_d = sd;
}

template <class T, Power P>
void reduce_tile(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    using S = typename T::Storage;
    const i64 columns = tile.columns;
    if (column_part)
        for (i64 j = 0; j < columns; ++j) column_part[j] = 0.0;
    const S *base = static_cast<const S *>(m.data) + tile.row * m.width + tile.column;
    const double *factor = m.row_factor ? m.row_factor + tile.row : nullptr;
    // The same columns some rows further down, so that no row that has been read already is asked for.
    const i64 ahead = 4 * m.width * ((AHEAD + 4 * m.width - 1) / (4 * m.width));
    i64 r = 0;
    if (P != LARGEST) {
        for (; column_part && r + 4 <= tile.rows; r += 4) {
            const S *a = base + r * m.width, *b = a + m.width, *c = b + m.width, *d = c + m.width;
            const double fa = factor ? factor[r] : 1.0, fb = factor ? factor[r + 1] : 1.0;
            const double fc = factor ? factor[r + 2] : 1.0, fd = factor ? factor[r + 3] : 1.0;
            double sa = 0.0, sb = 0.0, sc = 0.0, sd = 0.0;
            i64 j = 0;
            for (; j + READ_STEP <= columns; j += READ_STEP) {
                ask<false>(a + j + ahead);
                ask<false>(b + j + ahead);
                ask<false>(c + j + ahead);
                ask<false>(d + j + ahead);
                four_rows<T, P>(a + j, b + j, c + j, d + j, fa, fb, fc, fd, p, READ_STEP, column_part + j, sa, sb, sc, sd);
            }
            four_rows<T, P>(a + j, b + j, c + j, d + j, fa, fb, fc, fd, p, columns - j, column_part + j, sa, sb, sc, sd);
            if (row_part) {
                row_part[r] = sa;
                row_part[r + 1] = sb;
                row_part[r + 2] = sc;
                row_part[r + 3] = sd;
            }
        }
    }
    for (; r < tile.rows; ++r) {
        const S *a = base + r * m.width;
        const double fa = factor ? factor[r] : 1.0;
        double sum = 0.0, broken = 0.0;
        if (P == LARGEST) {
#pragma omp simd reduction(max : sum) reduction(+ : broken)
            for (i64 j = 0; j < columns; ++j) {
                const double x = std::fabs(T::load(a[j]) * fa);
                sum = x > sum ? x : sum;
                broken += x - x;
            }
            if (column_part) {
#pragma omp simd
                for (i64 j = 0; j < columns; ++j) column_part[j] = larger(std::fabs(T::load(a[j]) * fa), column_part[j]);
            }
            if (broken != 0.0) sum = broken;
        } else if (column_part) {
#pragma omp simd reduction(+ : sum)
            for (i64 j = 0; j < columns; ++j) {
                const double x = powered<P>(T::load(a[j]) * fa, p);
                sum += x;
                column_part[j] += x;
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (i64 j = 0; j < columns; ++j) sum += powered<P>(T::load(a[j]) * fa, p);
        }
        if (row_part) row_part[r] = sum;
    }
}

template <class T>
void reduce_any(const ReduceMatrix &m, const ReduceTile &tile, double p, double *row_part, double *column_part) {
    if (std::isinf(p)) reduce_tile<T, LARGEST>(m, tile, p, row_part, column_part);
    else if (p == 2.0) reduce_tile<T, TWO>(m, tile, p, row_part, column_part);
    else if (p == 1.0) reduce_tile<T, ONE>(m, tile, p, row_part, column_part);
    else if (p == 4.0) reduce_tile<T, FOUR>(m, tile, p, row_part, column_part);
    else reduce_tile<T, ANY>(m, tile, p, row_part, column_part);
}

void combine(const double *part, i64 count, double *into, bool largest) {
    if (largest)
        for (i64 i = 0; i < count; ++i) into[i] = larger(part[i], into[i]);
    else
        for (i64 i = 0; i < count; ++i) into[i] += part[i];
}

// The largest of |x|; what is no number is passed over.
template <class T> double largest_of(const typename T::Storage *x, i64 count) {
    double largest = 0.0;
#pragma omp simd reduction(max : largest)
    for (i64 j = 0; j < count; ++j) {
        const double size = std::fabs(T::load(x[j]));
        largest = size > largest ? size : largest;
    }
    return largest;
}
template <> double largest_of<F32>(const float *x, i64 count) {
    float largest = 0.0f;
#pragma omp simd reduction(max : largest)
    for (i64 j = 0; j < count; ++j) {
        const float size = std::fabs(x[j]);
        largest = size > largest ? size : largest;
    }
    return largest;
}

// Returns the number of rows done; fewer than all where a row holds something above the threshold.
template <class T>
i64 scale_tile(const ScaleMatrix &m, const ScaleTile &tile, const double *factors, double threshold, bool invert, i64 rows) {
    using S = typename T::Storage;
    S *base = static_cast<S *>(m.data) + tile.row * m.width + tile.column;
    const double *row = m.row_factor < 0 ? nullptr : factors + m.row_factor + tile.row;
    const double *column = m.column_factor < 0 ? nullptr : factors + m.column_factor + tile.segment * m.width + tile.column;
    const i64 columns = tile.columns;
    for (i64 r = 0; r < rows; ++r, base += m.width) {
        if (threshold < HUGE_VAL && largest_of<T>(base, columns) >= threshold) return r;
        const double f = row ? row[r] : 1.0;
        if (invert) {
            for (i64 j = 0; j < columns; ++j) base[j] = T::store(T::load(base[j]) / (column ? f * column[j] : f));
            continue;
        }
        i64 j = 0;
        for (; j + WRITE_STEP <= columns; j += WRITE_STEP) {
            S *x = base + j;
            ask<true>(x + AHEAD);
            if (column) {
                const double *c = column + j;
#pragma omp simd
                for (i64 i = 0; i < WRITE_STEP; ++i) x[i] = T::store(T::load(x[i]) * (f * c[i]));
            } else {
#pragma omp simd
                for (i64 i = 0; i < WRITE_STEP; ++i) x[i] = T::store(T::load(x[i]) * f);
            }
        }
        if (column) {
#pragma omp simd
            for (i64 i = j; i < columns; ++i) base[i] = T::store(T::load(base[i]) * (f * column[i]));
        } else {
#pragma omp simd
            for (i64 i = j; i < columns; ++i) base[i] = T::store(T::load(base[i]) * f);
        }
    }
    return rows;
}

i64 scale_any(const ScaleMatrix &m, const ScaleTile &tile, const double *factors, double threshold, bool invert, i64 rows) {
    switch (m.dtype) {
    case 0: return scale_tile<F32>(m, tile, factors, threshold, invert, rows);
    case 1: return scale_tile<F64>(m, tile, factors, threshold, invert, rows);
    case 2: return scale_tile<BF16>(m, tile, factors, threshold, invert, rows);
    default: return scale_tile<F16>(m, tile, factors, threshold, invert, rows);
    }
}

}  // namespace

extern "C" {

// Sums of |w|^p (p = inf: the largest |w|) by slot; `out` is overwritten.
void fxenorm_reduce(const ReduceMatrix *matrices, i64 matrix_count, const ReduceTile *tiles, i64 tile_count, const Link *links,
                    i64 link_count, double *work, double *out, i64 out_count, double p, int threads) {
    const bool largest = std::isinf(p);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < tile_count; ++i) {
            const ReduceTile &tile = tiles[i];
            const ReduceMatrix &m = matrices[tile.matrix];
            double *row_part = tile.row_part < 0 ? nullptr : work + tile.row_part;
            double *column_part = tile.column_part < 0 ? nullptr : work + tile.column_part;
            switch (m.dtype) {
            case 0: reduce_any<F32>(m, tile, p, row_part, column_part); break;
            case 1: reduce_any<F64>(m, tile, p, row_part, column_part); break;
            case 2: reduce_any<BF16>(m, tile, p, row_part, column_part); break;
            default: reduce_any<F16>(m, tile, p, row_part, column_part); break;
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < matrix_count; ++i) {
            const ReduceMatrix &m = matrices[i];
            if (m.row_sums >= 0) std::memset(work + m.row_sums, 0, sizeof(double) * m.rows);
            if (m.column_sums >= 0) std::memset(work + m.column_sums, 0, sizeof(double) * m.column_count);
            for (i64 t = m.first_tile; t < m.last_tile; ++t) {
                const ReduceTile &tile = tiles[t];
                if (tile.row_part >= 0) combine(work + tile.row_part, tile.rows, work + m.row_sums + tile.row, largest);
                if (tile.column_part >= 0)
                    combine(work + tile.column_part, tile.columns,
                            work + m.column_sums + tile.segment * m.width + tile.column, largest);
            }
        }
    }
    std::memset(out, 0, sizeof(double) * out_count);
    for (i64 i = 0; i < link_count; ++i) {
        const Link &link = links[i];
        const double *source = work + link.source;
        for (i64 j = 0; j < link.count; ++j) {
            double &slot = out[link.slots[j]];
            slot = largest ? larger(source[j], slot) : slot + link.weight * source[j];
        }
    }
}

// Multiplies everything in place. Where an entry of matrix i reaches thresholds[i], everything is divided again, so that nothing
// stays changed but for a rounding, and the answer is 1; thresholds null: whatever the entries are. `done` holds one number a tile.
int fxenorm_scale(const ScaleMatrix *matrices, const ScaleTile *tiles, i64 tile_count, const FactorLink *links, i64 link_count,
                  const double *powers, i64 power_stride, double *factors, const double *thresholds, i64 *done, int threads) {
    int stop = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 4)
        for (i64 i = 0; i < link_count; ++i) {
            if (!links[i].first) continue;
            for (i64 k = i; k < link_count && (k == i || !links[k].first); ++k) {
                const double *power = powers + links[k].exponent * power_stride;
                const std::int32_t *ids = links[k].ids;
                double *to = factors + links[k].destination;
                if (k == i)
                    for (i64 j = 0; j < links[k].count; ++j) to[j] = power[ids[j]];
                else
                    for (i64 j = 0; j < links[k].count; ++j) to[j] *= power[ids[j]];
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < tile_count; ++i) {
            int stopped;
#pragma omp atomic read
            stopped = stop;
            done[i] = 0;
            if (stopped) continue;
            const ScaleTile &tile = tiles[i];
            const double threshold = thresholds ? thresholds[tile.matrix] : HUGE_VAL;
            done[i] = scale_any(matrices[tile.matrix], tile, factors, threshold, false, tile.rows);
            if (done[i] < tile.rows) {
#pragma omp atomic write
                stop = 1;
            }
        }
        if (stop) {
#pragma omp for schedule(dynamic, 1)
            for (i64 i = 0; i < tile_count; ++i)
                scale_any(matrices[tiles[i].matrix], tiles[i], factors, HUGE_VAL, true, done[i]);
        }
    }
    return stop;
}

}  // extern "C"

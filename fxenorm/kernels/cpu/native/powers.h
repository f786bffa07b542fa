// |x|^p and base-2 logarithms of many numbers at a time: whole p by products, others by series.
//
// In float64 to about 1e-14 of the result where |p log2 x| is of the order of 100, in float32 to some 1e-7 times that order.
#pragma once
#include <cmath>
#include <cstring>

#include "number_types.h"
#include "tables.h"

namespace {

constexpr i64 LANES = 16, WIDE_LANES = 8;
constexpr double LARGEST_WHOLE = 1024.0;   // whole exponents up to it are taken by products

typedef float FloatLanes __attribute__((vector_size(64)));
typedef std::uint32_t Bits32 __attribute__((vector_size(64)));
typedef std::int32_t Ints32 __attribute__((vector_size(64)));
typedef std::uint16_t Bits16 __attribute__((vector_size(32)));
typedef double WideLanes __attribute__((vector_size(64)));
typedef std::int64_t Ints64 __attribute__((vector_size(64)));

template <class To, class From> inline To as(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
template <class V, class S> inline V loaded(const S *x) {
    V v;
    std::memcpy(&v, x, sizeof(V));
    return v;
}
template <class V, class S> inline void stored(S *x, V v) { std::memcpy(x, &v, sizeof(V)); }

// The same operations on lanes of both widths.
template <class V> struct Format;
template <> struct Format<FloatLanes> {
    using Number = float;
    using Ints = Ints32;
    using Int = std::int32_t;
    static constexpr int FRACTION = 23, BIAS = 127, LIFT = 32, LOGARITHM = 5, EXPONENTIAL = 7;
    static constexpr Int ROOT_OF_HALF = 0x3f3504f3;
    static constexpr Number ROUNDER = 12582912.0f, SMALLEST_NORMAL = 1.17549435e-38f;
};
template <> struct Format<WideLanes> {
    using Number = double;
    using Ints = Ints64;
    using Int = std::int64_t;
    static constexpr int FRACTION = 52, BIAS = 1023, LIFT = 64, LOGARITHM = 10, EXPONENTIAL = 13;
    static constexpr Int ROOT_OF_HALF = 0x3fe6a09e667f3bcd;
    static constexpr Number ROUNDER = 6755399441055744.0, SMALLEST_NORMAL = 2.2250738585072014e-308;
};

template <class V> inline V all_of(typename Format<V>::Number x) { return V{} + x; }
template <class V> inline V chosen(typename Format<V>::Ints where, V a, V b) { return where ? a : b; }
template <class V> inline V size_of(V x) {
    using I = typename Format<V>::Ints;
    using Int = typename Format<V>::Int;
    return as<V>(as<I>(x) & static_cast<Int>(~(Int(1) << (8 * sizeof(Int) - 1))));
}
inline float size_of(float x) { return std::fabs(x); }

// log2 of numbers >= 0: -inf of 0, and what is not finite stays as it is.
template <class V> inline V log2_of(V x) {
    using F = Format<V>;
    using N = typename F::Number;
    using I = typename F::Ints;
    const I tiny = x < F::SMALLEST_NORMAL;
    const N lift = static_cast<N>(std::ldexp(1.0, F::LIFT));
    const V lifted = chosen<V>(tiny, x * lift, x);
    const I bits = as<I>(lifted), whole = (bits - F::ROOT_OF_HALF) >> F::FRACTION;
    const V fraction = as<V>(bits - (whole << F::FRACTION));      // from sqrt(1/2) to sqrt(2)
    const V octaves = as<V>(whole + as<I>(all_of<V>(F::ROUNDER))) - F::ROUNDER;
    // log x = 2 (s + s^3 / 3 + s^5 / 5 + ...)
    const V s = (fraction - N(1)) / (fraction + N(1)), square = s * s;
    V series = all_of<V>(N(1) / N(2 * F::LOGARITHM - 1));
    for (int i = F::LOGARITHM - 2; i >= 0; --i) series = series * square + N(1) / N(2 * i + 1);
    V found = octaves + s * series * N(2.8853900817779268147);   // 2 / log 2
    found = chosen<V>(tiny, found - N(F::LIFT), found);
    found = chosen<V>(x == N(0), all_of<V>(-static_cast<N>(HUGE_VAL)), found);
    return chosen<V>(x < static_cast<N>(HUGE_VAL), found, x);
}

// 2^t; 0 below the normal numbers.
template <class V> inline V exp2_of(V t) {
    using F = Format<V>;
    using N = typename F::Number;
    using I = typename F::Ints;
    const V shifted = t + F::ROUNDER, rest = (t - (shifted - F::ROUNDER)) * N(0.69314718055994530942);
    V series = all_of<V>(N(1));
    for (int i = F::EXPONENTIAL; i > 0; --i) series = series * (rest * (N(1) / N(i))) + N(1);
    const I octaves = as<I>(shifted) - as<I>(all_of<V>(F::ROUNDER));
    const V power = as<V>((octaves + F::BIAS) << F::FRACTION);
    V found = chosen<V>(t < N(1 - F::BIAS), V{}, series * power);
    return chosen<V>(t > N(F::BIAS), all_of<V>(static_cast<N>(HUGE_VAL)), found);
}

// Exponents of sizes.
struct WholePower {
    i64 p;
    template <class V> V operator()(V x) const {
        V found = p & 1 ? x : all_of<V>(1);
        for (i64 rest = p >> 1; rest; rest >>= 1) {
            x = x * x;
            if (rest & 1) found = found * x;
        }
        return found;
    }
};
struct RealPower {
    double p;
    template <class V> V operator()(V x) const { return exp2_of<V>(log2_of<V>(x) * static_cast<typename Format<V>::Number>(p)); }
};

inline bool is_whole(double p) { return p <= LARGEST_WHOLE && std::floor(p) == p; }

// Bits of 16-bit numbers as those of float32.
template <class Bits> inline Bits brain_bits(Bits x) { return x << 16; }
template <class Bits, class Floats> inline Bits half_bits(Bits x) {
    const Bits size = x & 0x7fffu;
    const Floats finite = as<Floats>(size << 13) * from_bits(0x77800000u);   // see F16::load
    const Bits special = 0x7f800000u | ((size & 0x3ffu) << 13), is_special = as<Bits>(size >= 0x7c00u);
    return ((special & is_special) | (as<Bits>(finite) & ~is_special)) | ((x & 0x8000u) << 16);
}

// Eight numbers of a type as float64.
typedef float NarrowLanes __attribute__((vector_size(32)));
typedef std::uint32_t NarrowBits __attribute__((vector_size(32)));
typedef std::uint16_t FewBits16 __attribute__((vector_size(16)));
inline NarrowBits eight(const std::uint16_t *x) { return __builtin_convertvector(loaded<FewBits16>(x), NarrowBits); }
inline WideLanes widest(NarrowLanes x) { return __builtin_convertvector(x, WideLanes); }
template <class T> WideLanes wide(const typename T::Storage *x);
template <> inline WideLanes wide<F32>(const float *x) { return widest(loaded<NarrowLanes>(x)); }
template <> inline WideLanes wide<F64>(const double *x) { return loaded<WideLanes>(x); }
template <> inline WideLanes wide<BF16>(const std::uint16_t *x) { return widest(as<NarrowLanes>(brain_bits(eight(x)))); }
template <> inline WideLanes wide<F16>(const std::uint16_t *x) {
    return widest(as<NarrowLanes>(half_bits<NarrowBits, NarrowLanes>(eight(x))));
}

// Sixteen numbers of a narrow type as float32.
inline Bits32 sixteen(const std::uint16_t *x) { return __builtin_convertvector(loaded<Bits16>(x), Bits32); }
template <class T> FloatLanes narrow(const typename T::Storage *x);
template <> inline FloatLanes narrow<F32>(const float *x) { return loaded<FloatLanes>(x); }
template <> inline FloatLanes narrow<BF16>(const std::uint16_t *x) { return as<FloatLanes>(brain_bits(sixteen(x))); }
template <> inline FloatLanes narrow<F16>(const std::uint16_t *x) {
    return as<FloatLanes>(half_bits<Bits32, FloatLanes>(sixteen(x)));
}

// Fewer than that, and zeros behind them.
template <class T> inline WideLanes wide_rest(const typename T::Storage *x, i64 count) {
    double values[WIDE_LANES] = {};
    for (i64 i = 0; i < count; ++i) values[i] = T::load(x[i]);
    return loaded<WideLanes>(values);
}
template <class T> inline FloatLanes narrow_rest(const typename T::Storage *x, i64 count) {
    float values[LANES] = {};
    for (i64 i = 0; i < count; ++i) values[i] = static_cast<float>(T::load(x[i]));
    return loaded<FloatLanes>(values);
}
inline double total_of(WideLanes sum) {
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// All of some numbers >= 0 become their base-2 logarithms.
inline void take_logs(double *x, i64 count) {
    i64 i = 0;
    for (; i + WIDE_LANES <= count; i += WIDE_LANES) stored(x + i, log2_of<WideLanes>(loaded<WideLanes>(x + i)));
    if (i == count) return;
    double rest[WIDE_LANES] = {};
    std::memcpy(rest, x + i, sizeof(double) * (count - i));
    stored(rest, log2_of<WideLanes>(loaded<WideLanes>(rest)));
    std::memcpy(x + i, rest, sizeof(double) * (count - i));
}

// The base-2 logarithm of the sum of two numbers, of which those are given.
template <class V> inline V added_logs(V a, V b) {
    using N = typename Format<V>::Number;
    const V large = chosen<V>(a > b, a, b), small = chosen<V>(a > b, b, a), gap = small - large;
    const V found = large + log2_of<V>(exp2_of<V>(gap) + N(1));
    const V known = chosen<V>(size_of(large) < static_cast<N>(HUGE_VAL), found, large);
    return chosen<V>((a == a) & (b == b), known, a + b);
}

}  // namespace

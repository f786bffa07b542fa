// From the sums of variables to their factors, and to the powers of these that are needed.
#pragma once
#include <cmath>

#include "any_power.h"
#include "tables.h"

namespace {

constexpr i64 VARIABLES_AT_ONCE = 256;

inline double integer_power(double base, i64 power) {
    double result = 1.0;
    for (i64 i = power < 0 ? -power : power; i > 0; --i) result *= base;
    return power < 0 ? 1.0 / result : result;
}

inline double real_power(double base, double power) {
    const i64 whole = static_cast<i64>(power);
    return static_cast<double>(whole) == power ? integer_power(base, whole) : std::exp(power * std::log(base));
}

// All powers of some variables' factors that are needed.
inline void store_powers(const Step &step, const i64 *variables, i64 count, const double *factor, const double *inverse) {
    const i64 stride = step.variable_count + 1;
    for (i64 e = 0; e < step.power_count; ++e) {
        const i64 power = step.powers[e], size = power < 0 ? -power : power;
        const double *base = power < 0 ? inverse : factor;
        for (i64 i = 0; i < count; ++i) {
            const double value = integer_power(base[i], size);
            step.power_table[e * stride + variables[i]] = value;
            step.narrow_power_table[e * stride + variables[i]] = static_cast<float>(value);
        }
    }
}

// The factors of some variables in one cycle, (N / P)^(1 / (p A)).
inline void cycle_factors(const Step &step, const i64 *variables, i64 count, double *factor) {
    if (adds_logs(step.p)) {
        for (i64 i = 0; i < count; ++i) {
            const i64 k = variables[i];
            const double gap = step.sums[k] - step.sums[step.variable_count + k];
            factor[i] = step.held[k] || !std::isfinite(gap) ? 1.0 : std::exp2(step.exponents[k] * gap);
        }
        return;
    }
    const std::int32_t root = count ? step.roots[variables[0]] : 0;
    double divisor[VARIABLES_AT_ONCE];
    bool alike = root >= 0;
    for (i64 i = 0; i < count; ++i) {
        const i64 k = variables[i];
        const double negative = step.sums[k], positive = step.sums[step.variable_count + k];
        const bool moves = (negative > 0.0) & (positive > 0.0) & (negative < HUGE_VAL) & (positive < HUGE_VAL) & !step.held[k];
        factor[i] = moves ? negative : 1.0;
        divisor[i] = moves ? positive : 1.0;
        alike &= step.roots[k] == root;
    }
    for (i64 i = 0; i < count; ++i) factor[i] /= divisor[i];
    if (alike) {
        for (std::int32_t times = 0; times < root; ++times)
            for (i64 i = 0; i < count; ++i) factor[i] = std::sqrt(factor[i]);
        return;
    }
    for (i64 i = 0; i < count; ++i) {
        const i64 k = variables[i];
        if (step.roots[k] < 0) factor[i] = std::exp(step.exponents[k] * std::log(factor[i]));
        for (std::int32_t times = 0; times < step.roots[k]; ++times) factor[i] = std::sqrt(factor[i]);
    }
}

// The largest power of two that is no larger than a size of at least 1; a rounding error below one counts as that one.
inline double whole_octaves(double size) {
    int exponent;
    std::frexp(size * (1.0 + 1e-12), &exponent);
    return std::ldexp(1.0, exponent - 1);
}

// Settles the variables from `begin` to `end`; returns the size of the largest factor, or inverse of one.
double settle(const Step &step, i64 begin, i64 end) {
    double factor[VARIABLES_AT_ONCE], inverse[VARIABLES_AT_ONCE], size = 1.0;
    for (; begin < end; begin += VARIABLES_AT_ONCE) {
        const i64 *variables = step.variables + begin, count = end - begin < VARIABLES_AT_ONCE ? end - begin : VARIABLES_AT_ONCE;
        cycle_factors(step, variables, count, factor);
        for (i64 i = 0; i < count; ++i) {
            factor[i] = factor[i] > step.limit ? step.limit : 1.0 / factor[i] > step.limit ? 1.0 / step.limit : factor[i];
            inverse[i] = 1.0 / factor[i];
        }
        for (i64 i = 0; i < count; ++i) {
            if (!step.octaves[variables[i]]) continue;
            double &large = factor[i] >= 1.0 ? factor[i] : inverse[i], &small = factor[i] >= 1.0 ? inverse[i] : factor[i];
            large = whole_octaves(large);
            small = 1.0 / large;
        }
        for (i64 i = 0; i < count; ++i) {
            const bool waits = (factor[i] < step.band) & (inverse[i] < step.band);
            factor[i] = waits ? 1.0 : factor[i];
            inverse[i] = waits ? 1.0 : inverse[i];
            size = factor[i] > size ? factor[i] : size;
            size = inverse[i] > size ? inverse[i] : size;
        }
        store_powers(step, variables, count, factor, inverse);
    }
    return size;
}

}  // namespace

// The factors of a table's rows or columns, from those of the variables that they carry.
#pragma once
#include "tables.h"

namespace {

// Those of one link; further terms of the same rows or columns follow it.
template <class Power, class Number>
void fill_factors(const FactorLink *links, i64 link, i64 end, const Power *table, i64 stride, Number *factors) {
    for (i64 k = link; k < end && (k == link || !links[k].first); ++k) {
        const FactorLink &one = links[k];
        const Power *power = table + one.exponent * stride;
        Number *to = factors + one.destination;
        if (k == link) {
#pragma omp simd
            for (i64 j = 0; j < one.count; ++j) to[j] = static_cast<Number>(power[one.ids[j]]);
        } else {
#pragma omp simd
            for (i64 j = 0; j < one.count; ++j) to[j] *= static_cast<Number>(power[one.ids[j]]);
        }
    }
}

}  // namespace

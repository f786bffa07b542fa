// Whether numbers of zero are among many, by their bits without the sign.
#pragma once
#include <cstdint>
#include <cstring>

#include "tables.h"

namespace {

template <class Bits> bool zero_among(const Bits *x, i64 count) {
    typedef Bits Lanes __attribute__((vector_size(64)));
    constexpr i64 WIDTH = 64 / sizeof(Bits);
    const Bits mask = static_cast<Bits>(static_cast<Bits>(~Bits(0)) >> 1);
    Lanes found = Lanes{};
    i64 i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        Lanes size;
        std::memcpy(&size, x + i, sizeof(size));
        found |= (Lanes)((size & mask) == Lanes{});
    }
    Bits any = 0;
    for (i64 k = 0; k < WIDTH; ++k) any |= found[k];
    for (; i < count; ++i) any |= static_cast<Bits>((x[i] & mask) == 0);
    return any != 0;
}

template <class Bits> int find_zeros(const void *data, i64 count, int threads) {
    const Bits *x = static_cast<const Bits *>(data);
    constexpr i64 SOME = 1 << 16;
    int found = 0;
#pragma omp parallel for schedule(static) reduction(| : found) num_threads(threads) if (threads > 1)
    for (i64 start = 0; start < count; start += SOME)
        if (!found) found |= zero_among(x + start, count - start < SOME ? count - start : SOME) ? 1 : 0;
    return found;
}

}  // namespace

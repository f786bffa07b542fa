// The number types of weights, and how each becomes a float64 and back.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

// `Wide` is the type in which the fast kernels compute, `load` and `store` are by way of float64.
struct F32 {
    using Storage = float;
    using Wide = float;
    static double load(float x) { return x; }
    static float store(double x) { return static_cast<float>(x); }
};
struct F64 {
    using Storage = double;
    using Wide = double;
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
    using Wide = float;
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
    using Wide = float;
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

}  // namespace

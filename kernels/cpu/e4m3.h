// E4M3, the 8-bit float of MXFP8's elements and NVFP4's scales: 4 bits of exponent, biased by 7, 3 of mantissa. Below
// 2^-6 it counts in steps of 2^-9. The same bits as float8_e4m3fn; float32 has a bias of 127, 120 more.
#pragma once

#include "simd.h"

constexpr float kE4m3Max = 448.0f;
constexpr int32_t kE4m3Nan = 0x7f, kE4m3One = 0x38;
constexpr int32_t kE4m3Bias = 120 << 23;  // of float32's exponent over E4M3's
constexpr float kE4m3Normal = 0x1p-6f;

typedef uint8_t u8 __attribute__((vector_size(kLanes)));

// The codes of `a`, 0 to 448, to nearest with ties to even.
QUARTET_INLINE i32 e4m3_nearest(f32 a) {
    constexpr float kMagic = 0x1.8p14f;  // a unit in its last place is 2^-9
    i32 bits = (i32)a;
    i32 normal = (bits - kE4m3Bias + 0x7ffff + (bits >> 20 & 1)) >> 20;
    i32 small = (i32)(a + kMagic) - (i32)splat(kMagic);
    return a < kE4m3Normal ? small : normal;
}

// The codes of `a >= 0`, saturated at 448: up iff bits + floor(fraction * 2^16) >= 2^16.
QUARTET_INLINE i32 e4m3_stochastic(f32 a, i32 bits) {
    a = smaller(a, splat(kE4m3Max));
    i32 normal = ((i32)a - kE4m3Bias) >> 4;
    i32 small = __builtin_convertvector(smaller(a, splat(kE4m3Normal)) * 0x1p25f, i32);
    return smaller(((a < kE4m3Normal ? small : normal) + bits) >> 16, splat(kE4m3Nan - 1));
}

// The values of codes without a sign, NaN's apart.
QUARTET_INLINE f32 e4m3_magnitude(i32 code) {
    return code < 8 ? __builtin_convertvector(code, f32) * 0x1p-9f : (f32)((code << 20) + kE4m3Bias);
}

// The values of any codes.
QUARTET_INLINE f32 e4m3_value(i32 code) {
    i32 rest = code & 0x7f;
    i32 bits = rest == kE4m3Nan ? splat(0x7fc00000) : (i32)e4m3_magnitude(rest);
    return (f32)(bits | (code & 0x80) << 24);
}

inline float e4m3_value(uint8_t code) {
    uint32_t rest = code & 0x7f;
    if (rest == kE4m3Nan) return __builtin_nanf("");
    uint32_t bits = (rest << 20) + kE4m3Bias;
    float value = rest < 8 ? (float)rest * 0x1p-9f : load<float>(&bits);
    return code & 0x80 ? -value : value;
}

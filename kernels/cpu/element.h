// The element types of inputs and outputs: `widen` reads kLanes of them as float32, `narrow` writes kLanes, rounded to
// nearest with ties to even.
#pragma once

#include "entries.h"
#include "simd.h"

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

typedef uint16_t u16 __attribute__((vector_size(2 * kLanes)));

QUARTET_INLINE i32 load_words(const void* from) { return __builtin_convertvector(load<u16>(from), i32); }
QUARTET_INLINE void store_words(void* to, i32 words) { store(to, __builtin_convertvector(words, u16)); }

QUARTET_INLINE f32 widen(const float* from) { return load<f32>(from); }
QUARTET_INLINE void narrow(f32 values, float* to) { store(to, values); }

QUARTET_INLINE f32 widen(const BFloat16* from) { return (f32)(load_words(from) << 16); }

QUARTET_INLINE void narrow(f32 values, BFloat16* to) {
    i32 bits = (i32)values;
    i32 rounded = (i32)((u32)(bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    store_words(to, values == values ? rounded : splat(0x7fc0));
}

// Half precision has 5 bits of exponent, biased by 15 where float32 has 127: 112 apart, 224 for infinities and NaNs.
// Below 2^-14 it counts in steps of 2^-24.
QUARTET_INLINE f32 widen(const Float16* from) {
#if defined(__AVX512F__)
    return (f32)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__F16C__)
    return (f32)_mm256_cvtph_ps(load<__m128i>(from));
#else
    i32 bits = load_words(from), rest = bits & 0x7fff;
    i32 small = (i32)(__builtin_convertvector(rest, f32) * 0x1p-24f);
    i32 normal = (rest << 13) + (rest < 0x7c00 ? splat(112 << 23) : splat(224 << 23));
    return (f32)((rest < 0x400 ? small : normal) | (bits & 0x8000) << 16);
#endif
}

QUARTET_INLINE void narrow(f32 values, Float16* to) {
#if defined(__AVX512F__)
    store(to, _mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    store(to, _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
#else
    i32 bits = (i32)values & 0x7fffffff;
    i32 small = (i32)((f32)bits + 0.5f) - (126 << 23);  // 2^-24 is the last place of 0.5
    i32 normal = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
    i32 half = bits < (113 << 23) ? small : smaller(normal, splat(0x7c00));
    store_words(to, (bits > 0x7f800000 ? splat(0x7e00) : half) | (i32)((u32)values >> 16 & 0x8000));
#endif
}

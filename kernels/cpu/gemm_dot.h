// The integer dot product of one group, `start + sum_k column[k] row[k]`, in every lane of a vector of columns.
//
// A 32-bit lane has four consecutive k: unsigned bytes 0 .. 24 of the columns, signed bytes -12 .. 12 of the row, the
// same in every lane. A group is eight steps:
//
//     dot = dot_open(start);  8 times: dot = dot_step(dot, columns, row);  result = dot_close(dot, start)
//
// AVX512-VNNI sums four products into 32 bits. Elsewhere vpmaddubsw sums two into 16 bits: eight steps stay within
// 8 * 2 * 24 * 12 = 4608, so that one vpmaddwd a group widens them.
#pragma once

#include "simd.h"

namespace gemm {

#if defined(__AVX512VNNI__)

QUARTET_INLINE u32 dot_open(u32 start) { return start; }

QUARTET_INLINE u32 dot_step(u32 dot, u32 columns, u32 row) {
    return (u32)_mm512_dpbusd_epi32((__m512i)dot, (__m512i)columns, (__m512i)row);
}

QUARTET_INLINE u32 dot_close(u32 dot, u32) { return dot; }

#else

QUARTET_INLINE u32 dot_open(u32) { return u32{}; }

QUARTET_INLINE u32 dot_step(u32 dot, u32 columns, u32 row) {
#if defined(__AVX512BW__)
    dot = (u32)_mm512_add_epi16((__m512i)dot, _mm512_maddubs_epi16((__m512i)columns, (__m512i)row));
#else
    dot = (u32)_mm256_add_epi16((__m256i)dot, _mm256_maddubs_epi16((__m256i)columns, (__m256i)row));
#endif
    // Keeps GCC 12 from making a tree of the eight sums, which spills: 181 instead of 278 Gop/s (512x640x640, AVX2).
    asm("" : "+v"(dot));
    return dot;
}

QUARTET_INLINE u32 dot_close(u32 dot, u32 start) {
#if defined(__AVX512BW__)
    return start + (u32)_mm512_madd_epi16((__m512i)dot, _mm512_set1_epi16(1));
#else
    return start + (u32)_mm256_madd_epi16((__m256i)dot, _mm256_set1_epi16(1));
#endif
}

#endif

}  // namespace gemm

// The integer dot product of one group, `start + sum_k column[k] row[k]`, in every lane of a vector of columns.
//
// A 32-bit lane has four consecutive k: unsigned bytes 0 .. 24 of the columns, signed bytes -12 .. 12 of the row, the same
// in every lane. A group is eight steps:
//
//     sum = dot_open(start);  8 times: sum = dot_step(sum, columns, row);  result = dot_close(sum, start)
//
// AVX512-VNNI sums four products into 32 bits. Elsewhere vpmaddubsw sums two into 16 bits: eight steps stay within
// 8 * 2 * 24 * 12 = 4608, so one vpmaddwd a group widens them.
#pragma once

#include "simd.h"

#if defined(__AVX512VNNI__)

QUARTET_INLINE u32 dot_open(u32 start) { return start; }

QUARTET_INLINE u32 dot_step(u32 sum, u32 columns, u32 row) {
    return (u32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)columns, (__m512i)row);
}

QUARTET_INLINE u32 dot_close(u32 sum, u32) { return sum; }

#else

QUARTET_INLINE u32 dot_open(u32) { return u32{}; }

QUARTET_INLINE u32 dot_step(u32 sum, u32 columns, u32 row) {
#if defined(__AVX512BW__)
    sum = (u32)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)columns, (__m512i)row));
#else
    sum = (u32)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)columns, (__m256i)row));
#endif
    // Without this, GCC 12 rearranges the eight sums into a tree and spills: 170 instead of 285 Gop/s (AVX2, 512x640x640).
    asm("" : "+v"(sum));
    return sum;
}

QUARTET_INLINE u32 dot_close(u32 sum, u32 start) {
#if defined(__AVX512BW__)
    return start + (u32)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1));
#else
    return start + (u32)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#endif
}

#endif

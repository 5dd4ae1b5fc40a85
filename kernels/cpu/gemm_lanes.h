// The integer dot product of one group, `start + sum_k u[k] s[k]`, in a vector of columns: one variant an instruction set.
//
// `u` holds the column operand (unsigned, 0 .. 24), `s` the row operand (signed, -12 .. 12, the same in every lane); one
// 32-bit lane of either has four consecutive k. A group is eight of them:
//
//     sum = open(start);  8 times: sum = accumulate(sum, u, s);  bits = close(sum, start)
//
// AVX512-VNNI sums four products into 32 bits at once. Elsewhere vpmaddubsw sums two into 16 bits: at most 2 * 24 * 12,
// and 8 * 576 = 4608 still fits, so that one vpmaddwd a group widens them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace quartet {

#if defined(__AVX512BW__)

struct Lanes {
  static constexpr int width = 16;
  using Int = __m512i;
  using Float = __m512;

  static Int load(const void* p) { return _mm512_load_si512(p); }
  static Int broadcast(int32_t x) { return _mm512_set1_epi32(x); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Float as_float(Int a) { return _mm512_castsi512_ps(a); }
  static Float zero() { return _mm512_setzero_ps(); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static void store(float* p, Float a) { _mm512_store_ps(p, a); }

#if defined(__AVX512VNNI__)
  static Int open(Int start) { return start; }
  static Int accumulate(Int sum, Int u, Int s) { return _mm512_dpbusd_epi32(sum, u, s); }
  static Int close(Int sum, Int) { return sum; }
#else
  static Int open(Int) { return _mm512_setzero_si512(); }
  static Int accumulate(Int sum, Int u, Int s) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(u, s)); }
  static Int close(Int sum, Int start) { return add(start, _mm512_madd_epi16(sum, _mm512_set1_epi16(1))); }
#endif
};

#elif defined(__AVX2__)

struct Lanes {
  static constexpr int width = 8;
  using Int = __m256i;
  using Float = __m256;

  static Int load(const void* p) { return _mm256_load_si256(static_cast<const Int*>(p)); }
  static Int broadcast(int32_t x) { return _mm256_set1_epi32(x); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Float as_float(Int a) { return _mm256_castsi256_ps(a); }
  static Float zero() { return _mm256_setzero_ps(); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static void store(float* p, Float a) { _mm256_store_ps(p, a); }

  static Int open(Int) { return _mm256_setzero_si256(); }
  static Int accumulate(Int sum, Int u, Int s) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, s)); }
  static Int close(Int sum, Int start) { return add(start, _mm256_madd_epi16(sum, _mm256_set1_epi16(1))); }
};

#endif

}  // namespace quartet

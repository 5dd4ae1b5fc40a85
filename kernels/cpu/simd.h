// Vectors of one register, for the instruction set that the library is built for: 16 lanes with AVX512, 8 with AVX2,
// else 4. Arithmetic, comparisons (all ones where true), selection and shifts are GCC's vector extensions, which clang
// has too; what they lack is here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define QUARTET_EXPORT extern "C" __attribute__((visibility("default")))
#define QUARTET_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float f32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t i32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t u32 __attribute__((vector_size(4 * kLanes)));
typedef uint64_t u64 __attribute__((vector_size(4 * kLanes)));  // half as many lanes

template <class Vector>
QUARTET_INLINE Vector load(const void* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class Vector>
QUARTET_INLINE void store(void* to, Vector value) {
    std::memcpy(to, &value, sizeof value);
}

// Four floats from each of `from`, `from + step`, `from + 2 * step`, ...
QUARTET_INLINE f32 load_quarters(const float* from, int64_t step) {
#if defined(__AVX512F__)
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(from));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(from + step), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(from + 2 * step), 2);
    return (f32)_mm512_insertf32x4(v, _mm_loadu_ps(from + 3 * step), 3);
#elif defined(__AVX2__)
    return (f32)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + step), 1);
#else
    return load<f32>(from);
#endif
}

QUARTET_INLINE f32 splat(float value) { return value - f32{}; }
QUARTET_INLINE i32 splat(int32_t value) { return value - i32{}; }
QUARTET_INLINE f32 magnitude(f32 a) { return (f32)((i32)a & 0x7fffffff); }
QUARTET_INLINE i32 larger(i32 a, i32 b) { return a > b ? a : b; }
QUARTET_INLINE i32 smaller(i32 a, i32 b) { return a < b ? a : b; }
QUARTET_INLINE f32 larger(f32 a, f32 b) { return a > b ? a : b; }  // b where either is NaN
QUARTET_INLINE f32 smaller(f32 a, f32 b) { return a < b ? a : b; }

// 2^exponent; nonsense where that is not a normal number.
QUARTET_INLINE f32 power_of_two(i32 exponent) { return (f32)((exponent + 127) << 23); }

QUARTET_INLINE bool any(i32 condition) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)condition) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)condition) != 0;
#else
    int32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= condition[lane];
    return found != 0;
#endif
}

// a * b + c where a * b is exact, so that a fused and an unfused product give the same bits.
QUARTET_INLINE f32 exact_product_plus(f32 a, float b, f32 c) {
#if defined(__AVX512F__)
    return (f32)_mm512_fmadd_ps((__m512)a, (__m512)splat(b), (__m512)c);
#elif defined(__FMA__)
    return (f32)_mm256_fmadd_ps((__m256)a, (__m256)splat(b), (__m256)c);
#else
    return a * b + c;
#endif
}

QUARTET_INLINE f32 square_root(f32 a) {
    f32 root;
    for (int lane = 0; lane < kLanes; ++lane) root[lane] = __builtin_sqrtf(a[lane]);
    return root;
}

// The lanes `Index::of(0), Index::of(1), ...` of the concatenation of a and b.
template <class Index, int... lane>
QUARTET_INLINE f32 shuffle_lanes(f32 a, f32 b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, Index::of(lane)...);
#else
    return __builtin_shuffle(a, b, i32{Index::of(lane)...});
#endif
}

template <class Index>
QUARTET_INLINE f32 shuffle(f32 a, f32 b) {
    return shuffle_lanes<Index>(a, b, std::make_integer_sequence<int, kLanes>());
}

// Transposes the 4x4 blocks that four vectors hold in their quarters: lane 4b + i of v[j] goes to lane 4b + j of v[i].
template <class Vector>
QUARTET_INLINE void transpose_4x4(Vector v[4]) {
    struct InterleaveLow { static constexpr int of(int i) { return i / 4 * 4 + i % 4 / 2 + i % 2 * kLanes; } };
    struct InterleaveHigh { static constexpr int of(int i) { return InterleaveLow::of(i) + 2; } };
    struct LowHalves { static constexpr int of(int i) { return i / 4 * 4 + i % 2 + i % 4 / 2 * kLanes; } };
    struct HighHalves { static constexpr int of(int i) { return LowHalves::of(i) + 2; } };
    f32 low01 = shuffle<InterleaveLow>((f32)v[0], (f32)v[1]), high01 = shuffle<InterleaveHigh>((f32)v[0], (f32)v[1]);
    f32 low23 = shuffle<InterleaveLow>((f32)v[2], (f32)v[3]), high23 = shuffle<InterleaveHigh>((f32)v[2], (f32)v[3]);
    v[0] = (Vector)shuffle<LowHalves>(low01, low23), v[1] = (Vector)shuffle<HighHalves>(low01, low23);
    v[2] = (Vector)shuffle<LowHalves>(high01, high23), v[3] = (Vector)shuffle<HighHalves>(high01, high23);
}

// Vectors of one register, for whatever instruction set the library is built for: 16 lanes with AVX512, 8 with AVX2, else 4.
// Arithmetic, comparisons (all ones where true) and shifts are GCC's vector extensions, which clang has too.
#pragma once

#include <cstdint>
#include <cstring>

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

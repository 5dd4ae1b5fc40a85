// Random bits: Philox4x32-7, the same bits as kernels/numerics/philox.py, whose docstring defines key, counter and streams.
#pragma once

#include "simd.h"

constexpr int kRounds = 7;
constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kDgradDy = 2, kWgradDy = 4, kSignStream = 16;
constexpr int64_t kNoiseSquare = 64;

struct PhiloxKey {
    uint32_t word0[kRounds], word1[kRounds];

    explicit PhiloxKey(int64_t seed) {
        for (uint32_t round = 0; round < kRounds; ++round) {
            word0[round] = (uint32_t)seed + round * 0x9E3779B9u;
            word1[round] = (uint32_t)((uint64_t)seed >> 32) + round * 0xBB67AE85u;
        }
    }
};

// One 32-bit word a lane in the low halves of 64-bit lanes; what the high halves hold doesn't matter.
struct Counter {
    u64 c0, c1, c2, c3;
};

QUARTET_INLINE u64 product_of_low_words(u64 a, uint64_t b) {
#if defined(__AVX512F__)
    return (u64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (u64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (u64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xffffffff) * b;
#endif
}

QUARTET_INLINE uint64_t high(uint64_t product) { return product >> 32; }
QUARTET_INLINE uint64_t low(uint64_t product) { return (uint32_t)product; }

QUARTET_INLINE Counter philox_round(const Counter& c, const PhiloxKey& key, int round) {
    u64 product0 = product_of_low_words(c.c0, kMultiplier0), product1 = product_of_low_words(c.c2, kMultiplier1);
    return {(product1 >> 32) ^ c.c1 ^ (uint64_t)key.word0[round], product1,
            (product0 >> 32) ^ c.c3 ^ (uint64_t)key.word1[round], product0};
}

// The counters (block, row of the lane, high, stream) after all rounds but the last. `high` and `block` are the same in
// every lane, so four of the first eight products are scalar: 10 vector products in all instead of 14.
QUARTET_INLINE Counter philox_but_last(const PhiloxKey& key, u64 rows, uint32_t block, uint32_t high_bits,
                                       uint32_t stream) {
    uint64_t first0 = block * kMultiplier0, first1 = high_bits * kMultiplier1;
    uint64_t c2 = high(first0) ^ stream ^ key.word1[0];

    uint64_t second1 = c2 * kMultiplier1;
    u64 second0 = product_of_low_words(rows ^ (high(first1) ^ key.word0[0]), kMultiplier0);
    uint64_t c0 = high(second1) ^ low(first1) ^ key.word0[1];

    uint64_t third0 = c0 * kMultiplier0;
    u64 third1 = product_of_low_words((second0 >> 32) ^ (low(first0) ^ key.word1[1]), kMultiplier1);
    Counter counter = {(third1 >> 32) ^ (low(second1) ^ key.word0[2]), third1,
                       second0 ^ (high(third0) ^ key.word1[2]), low(third0) + u64{}};
    for (int round = 3; round < kRounds - 1; ++round) counter = philox_round(counter, key, round);
    return counter;
}

// Even and odd 32-bit lanes from the high, or the low, words of 64-bit lanes.
QUARTET_INLINE u32 interleave_high(u64 even, u64 odd) { return (u32)((even >> 32) | (odd & 0xffffffff00000000)); }
QUARTET_INLINE u32 interleave_low(u64 even, u64 odd) { return (u32)((even & 0xffffffff) | (odd << 32)); }

// The random words of a block of columns for the rows `row`, `row + 1`, ... in the lanes. `row` is a multiple of kLanes.
QUARTET_INLINE void philox_words(const PhiloxKey& key, uint32_t stream, int64_t row, int64_t block, u32 words[4]) {
    uint32_t high_bits = (uint32_t)(row >> 32 & 0xffff) | (uint32_t)(block >> 32 & 0xffff) << 16;
    u64 rows;
    for (int lane = 0; lane < kLanes / 2; ++lane) rows[lane] = (uint32_t)row + 2 * lane;
    Counter even = philox_but_last(key, rows, (uint32_t)block, high_bits, stream);
    Counter odd = philox_but_last(key, rows + 1, (uint32_t)block, high_bits, stream);

    u64 even0 = product_of_low_words(even.c0, kMultiplier0), even1 = product_of_low_words(even.c2, kMultiplier1);
    u64 odd0 = product_of_low_words(odd.c0, kMultiplier0), odd1 = product_of_low_words(odd.c2, kMultiplier1);
    words[0] = interleave_high(even1, odd1) ^ interleave_low(even.c1, odd.c1) ^ key.word0[kRounds - 1];
    words[1] = interleave_low(even1, odd1);
    words[2] = interleave_high(even0, odd0) ^ interleave_low(even.c3, odd.c3) ^ key.word1[kRounds - 1];
    words[3] = interleave_low(even0, odd0);
}

// The random words of the 128 / bits elements from `column` on, for the rows `row`, `row + 1`, ... in the lanes. dY^T in wgrad has
// the words of dY in dgrad: kernels/numerics/philox.py.
template <int bits>
QUARTET_INLINE void noise_words(const PhiloxKey& key, uint32_t stream, int64_t row, int64_t column, u32 words[4]) {
    if (stream == kWgradDy) {
        const int64_t exchanged = (row ^ column) & -kNoiseSquare;
        row ^= exchanged, column ^= exchanged, stream = kDgradDy;
    }
    philox_words(key, stream, row, column / (128 / bits), words);
}

// The noise of column i of a block of 128 / bits columns: `bits` random bits from bit 24 - bits on, and half their unit.
template <int bits>
QUARTET_INLINE u32 noise_below_bit_24(const u32 words[4], int i) {
    constexpr int of_word = 32 / bits;
    constexpr uint32_t mask = ((1u << bits) - 1) << (24 - bits);
    const u32 word = words[i / of_word];
    const int left = 24 - bits - i % of_word * bits;
    return ((left >= 0 ? word << left : word >> -left) & mask) | (1u << (23 - bits));
}

// The sign bits of a rotation.
struct SignBits {
    uint32_t word[4];

    bool negative(int i) const { return word[i / 32] >> i % 32 & 1; }
};

inline SignBits philox_signs(int64_t seed, int64_t stream) {
    PhiloxKey key(seed);
    uint64_t c0 = 0, c1 = 0, c2 = 0, c3 = kSignStream + (uint32_t)(stream / 2);
    for (int round = 0; round < kRounds; ++round) {
        uint64_t product0 = c0 * kMultiplier0, product1 = c2 * kMultiplier1;
        c0 = high(product1) ^ c1 ^ key.word0[round], c1 = low(product1);
        c2 = high(product0) ^ c3 ^ key.word1[round], c3 = low(product0);
    }
    return {{(uint32_t)c0, (uint32_t)c1, (uint32_t)c2, (uint32_t)c3}};
}

// 256 bits that tell two matrices of the same size apart: NH of UMAC (Black et al., "UMAC: Fast and Secure Message
// Authentication", 1999, section 4) over blocks of 2 KiB, level by level, until one block is left.
//
// A block of 64-bit words w has two sums mod 2^128, of (w[i] + k[i]) * (w[i+1] + k[i+1]) over even i, the second with the
// keys two words further. Two different blocks have both alike for at most one in 2^128 of all keys, so two different matrices
// do for at most one in 2^124. The keys here are fixed numbers, which the weights of a model don't depend on.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "operand.h"
#include "parallel.h"

typedef unsigned __int128 Wide;

static const int64_t kWords = 256;
static const int64_t kBlock = 8 * kWords;
static const int64_t kResult = 4;

struct Keys {
    uint64_t words[kWords + 2];

    // Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014; each level has its own numbers.
    explicit Keys(uint64_t level) {
        uint64_t state = level << 32;
        for (uint64_t& word : words) {
            uint64_t z = state += 0x9e3779b97f4a7c15;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
            z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
            word = z ^ (z >> 31);
        }
    }
};

static uint64_t word_at(const unsigned char* at) {
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

static void hash_block(const Keys& keys, const unsigned char* from, int64_t bytes, uint64_t* to) {
    alignas(64) unsigned char rest[16] = {0};
    Wide first = 0, second = 0;
    const uint64_t* k = keys.words;
    int64_t whole = bytes / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16, k += 2) {
        uint64_t a = word_at(from + i), b = word_at(from + i + 8);
        first += (Wide)(a + k[0]) * (b + k[1]);
        second += (Wide)(a + k[2]) * (b + k[3]);
    }
    if (whole < bytes) {
        memcpy(rest, from + whole, bytes - whole);
        uint64_t a = word_at(rest), b = word_at(rest + 8);
        first += (Wide)(a + k[0]) * (b + k[1]);
        second += (Wide)(a + k[2]) * (b + k[3]);
    }
    const uint64_t result[kResult] = {(uint64_t)first, (uint64_t)(first >> 64), (uint64_t)second, (uint64_t)(second >> 64)};
    memcpy(to, result, sizeof result);
}

// `rows` of `row_bytes`, `stride` bytes apart. hashes: uint64[blocks, 4], where a row of b bytes has ceil(b / 2048) blocks;
// the first four are the result.
QUARTET_EXPORT void quartet_fingerprint(const void* x, int64_t rows, int64_t row_bytes, int64_t stride, void* hashes,
                                        int64_t threads) {
    const unsigned char* from = (const unsigned char*)x;
    uint64_t* made = (uint64_t*)hashes;
    const int64_t a_row = (row_bytes + kBlock - 1) / kBlock;
    int64_t blocks = rows * a_row;
    const Keys keys(0);
#pragma omp parallel for schedule(static) num_threads(useful_threads(rows * row_bytes / 4, threads))
    for (int64_t block = 0; block < blocks; block++) {
        int64_t row = block / a_row, start = block % a_row * kBlock;
        hash_block(keys, from + row * stride + start, std::min(kBlock, row_bytes - start), made + block * kResult);
    }
    for (uint64_t level = 1; blocks > 1; level++) {
        const Keys of_level(level);
        const int64_t bytes = blocks * kResult * 8;
        blocks = (bytes + kBlock - 1) / kBlock;
        for (int64_t block = 0; block < blocks; block++) {
            alignas(64) unsigned char copy[kBlock];  // what is written lies where was read
            const int64_t size = std::min(kBlock, bytes - block * kBlock);
            memcpy(copy, (unsigned char*)made + block * kBlock, size);
            hash_block(of_level, copy, size, made + block * kResult);
        }
    }
}
